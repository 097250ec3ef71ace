"""Checkpoints written beside the training: of the right moment, one at a time, and none is lost for another."""

import os
import threading
import time
from collections.abc import Callable, Collection
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from dtrain import saver, tensor_file
from dtrain.bucket import Bucket
from dtrain.checkpoint import Checkpoint, load_newest, remove_old, save_checkpoint
from dtrain.saver import Saved, Saver
from shard_tools.storage import LocalStorage

from .conftest import fill
from .crash_disk import read_tree

PATIENCE_SECONDS = 60.0


class Training:
    """Tensors that change, and a saver of them."""

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 100,
        keep_last: int = 2,
        bucket: Path | None = None,
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.weights = {"w": torch.zeros(size), "steps": torch.tensor(0)}
        self.moments = {"m": torch.zeros(7, 3)}
        there = Bucket(LocalStorage(bucket)) if bucket else None
        self.saver = Saver(folder, keep_last=keep_last, bucket=there, log=(), sync=sync)

    def step(self, number: int) -> Checkpoint:
        """Change everything; what a checkpoint of that moment holds."""
        for tensor in (*self.weights.values(), *self.moments.values()):
            tensor.fill_(number)
        weights, moments = deepcopy((self.weights, self.moments))
        return Checkpoint(weights, moments, {"global_step": number})

    def save(self, number: int, *, keep: Collection[int] = (), urgent: bool = False) -> None:
        state = {"global_step": number}
        self.saver.save(
            number, Checkpoint(self.weights, self.moments, state), at=5.0, keep=lambda steps: keep, urgent=urgent
        )

    def saved(self) -> Saved:
        """What became of the only one since this was asked last."""
        self.saver.wait()
        (ended,) = self.saver.ended()
        return ended


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def checkpoints(*steps: int) -> set[str]:
    return {f"step-{step:08d}" for step in steps}


def test_it_is_of_the_moment_of_the_call_though_training_goes_on(tmp_path: Path) -> None:
    go_on = threading.Event()

    def wait() -> None:
        go_on.wait(PATIENCE_SECONDS)

    training = Training(tmp_path / "beside", sync=wait)
    for number in (1, 2):
        go_on.clear()
        expected = training.step(number)
        training.save(number)
        training.step(100)
        assert training.saver.busy
        assert training.saver.ended() == []
        go_on.set()
        ended = training.saved()
        path = tmp_path / f"beside/step-{number:08d}"
        assert ended == Saved(number, 5.0, ended.seconds, path, busy_seconds=ended.busy_seconds)
        assert ended.busy_seconds > 0
        assert ended.seconds > 0
        assert not training.saver.busy
        alone = save_checkpoint(tmp_path / "alone", number, expected)
        assert ended.path is not None
        assert read_tree(ended.path) == read_tree(alone)


def test_tensors_of_other_sizes_and_names_than_before(tmp_path: Path) -> None:
    training = Training(tmp_path / "beside")
    for number, weights in ((1, torch.ones(4, 5).t()), (2, torch.ones(3).double()), (3, torch.ones(()).bool())):
        training.weights = {f"w{number}": weights}
        expected = training.step(number)
        training.save(number)
        assert training.saved().path
        _, loaded, _ = load_newest(training.folder)
        assert loaded is not None
        assert list(loaded.weights) == [f"w{number}"]
        assert torch.equal(loaded.weights[f"w{number}"], expected.weights[f"w{number}"])


def test_one_waits_for_the_one_before(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", size=2**20)
    for number in (1, 2, 3):
        training.step(number)
        training.save(number)
    training.saver.wait()
    assert [(ended.global_step, ended.error) for ended in training.saver.ended()] == [(1, ""), (2, ""), (3, "")]
    assert training.saver.ended() == []
    assert names(training.folder) == checkpoints(2, 3)


def test_an_urgent_one_takes_the_place_of_one_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has 16,000 pieces to write, so it can't be done before the second comes."""
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 2048)
    begun = threading.Event()
    training = Training(tmp_path / "run", size=2**23, sync=begun.set)
    save_checkpoint(tmp_path / "run", 3, training.step(3))
    training.step(4)
    training.save(4)
    assert begun.wait(PATIENCE_SECONDS)
    training.step(5)
    training.save(5, urgent=True)
    assert training.saved().global_step == 5
    assert names(training.folder) == checkpoints(3, 5)
    _, loaded, _ = load_newest(training.folder)
    assert loaded is not None
    assert loaded.state == {"global_step": 5}
    assert bool((loaded.weights["w"] == 5).all())
    training.step(6)
    training.save(6)
    assert training.saved().path, "the next one is not given up"


@pytest.mark.parametrize("seconds", [PATIENCE_SECONDS, 0.001])
def test_one_that_is_to_be_kept_has_time_to_end_before_an_urgent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """That of the end of a stage, say, where the run can be begun again. It rests for a minute if nobody hurries it."""
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 2048)
    monkeypatch.setattr(saver, "HASTE_SECONDS", seconds)
    begun = threading.Event()
    training = Training(tmp_path / "run", keep_last=1, size=2**20, sync=begun.set)
    training.step(4)
    training.save(4, keep=(4,))
    assert begun.wait(PATIENCE_SECONDS)
    training.step(5)
    training.save(5, keep=(4,), urgent=True)
    training.saver.wait()
    first, second = training.saver.ended()
    assert (first.global_step, second.global_step) == (4, 5)
    assert second.path is not None
    if seconds == PATIENCE_SECONDS:
        assert names(training.folder) == checkpoints(4, 5)
    else:
        assert first.path is None
        assert "not done in 0.001 s" in first.error
        assert names(training.folder) == checkpoints(5)


def test_an_urgent_one_that_comes_during_the_upload_leaves_the_local_one(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    training = Training(tmp_path / "run", size=2**23, bucket=bucket)
    training.step(4)
    training.save(4)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(bucket.glob("step-00000004/model.safetensors*")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    training.save(5, urgent=True)
    training.saver.wait()
    assert training.saver.wait_for_copies(PATIENCE_SECONDS)
    first, second = training.saver.ended()
    assert (first.path, second.path) == (tmp_path / "run/step-00000004", tmp_path / "run/step-00000005")
    assert (first.error, second.error) == ("", "")
    assert (bucket / "step-00000005/files.json").exists()
    assert names(training.folder) == checkpoints(4, 5)


def test_it_gives_way_to_the_steps_unless_it_is_urgent(tmp_path: Path) -> None:
    priorities: list[int] = []
    own = os.getpriority(os.PRIO_PROCESS, 0)
    training = Training(
        tmp_path / "run", sync=lambda: priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    )
    for urgent in (False, True):
        training.save(1, urgent=urgent)
        training.saved()
    assert priorities == [19, own]
    assert os.sched_getscheduler(0) != os.SCHED_IDLE


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", keep_last=2)
    for number in range(1, 7):
        training.step(number)
        training.save(number, keep={1, 3})
        assert training.saved().error == ""
    assert names(training.folder) == checkpoints(1, 3, 5, 6)
    training.save(7)
    training.saved()
    assert names(training.folder) == checkpoints(6, 7)


def test_a_full_disk_is_reported_leaves_nothing_and_is_no_end(small_disk: Path) -> None:
    training = Training(small_disk / "run", size=50_000, keep_last=3)
    training.step(1)
    training.save(1)
    assert training.saved().path
    ballast = fill(small_disk)
    training.step(2)
    training.save(2)
    ended = training.saved()
    assert ended.path is None
    assert ended.error.startswith(f"{small_disk}/run/step-00000002: can't be written: No space left on device")
    assert names(training.folder) == checkpoints(1)
    ballast.unlink()
    training.step(3)
    training.save(3)
    assert training.saved().path
    assert names(training.folder) == checkpoints(1, 3)


def test_a_log_that_cannot_be_synced_means_no_checkpoint(tmp_path: Path) -> None:
    def sync() -> None:
        raise OSError(28, "No space left on device", "metrics.jsonl")

    training = Training(tmp_path / "run", sync=sync)
    training.save(1)
    assert training.saved().error == "[Errno 28] No space left on device: 'metrics.jsonl'"
    assert not training.folder.exists()


def test_whatever_goes_wrong_is_said(tmp_path: Path) -> None:
    """Else it would be taken for saved: a type of tensors that a file can't hold stands for it."""
    training = Training(tmp_path / "run")
    training.weights = {"w": torch.zeros(3, dtype=torch.complex64)}
    training.save(1)
    ended = training.saved()
    assert ended.path is None
    assert "complex64" in ended.error
    assert names(training.folder) == set()


def test_a_vanished_run_folder_is_said(tmp_path: Path) -> None:
    training = Training(tmp_path / "gone/checkpoints")
    training.save(1)
    assert training.saved().error.startswith(
        f"{tmp_path}/gone/checkpoints/step-00000001: can't be written: No such file"
    )
    assert names(tmp_path) == set()


def spoil(folder: Path, number: int, done: list[bool]) -> None:
    """Change a byte of the weights on the disk while the rest is still being written; note whether it was in time."""
    partial = folder / f".step-{number:08d}.partial"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (partial / "optimizer.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    try:
        with (partial / "model.safetensors").open("r+b") as weights:
            weights.seek(-1, os.SEEK_END)
            weights.write(b"\x55")
        done.append(not (partial / "files.json").exists())
    except FileNotFoundError:
        done.append(False)


def test_old_ones_go_only_when_the_new_one_was_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk gives back other bytes than were written. Tried until they are spoilt in time."""
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 2048)
    folder = tmp_path / "run"
    for _ in range(20):
        done: list[bool] = []
        spoiler = threading.Thread(target=spoil, args=(folder, 20, done))
        training = Training(folder, keep_last=1, sync=spoiler.start)
        save_checkpoint(folder, 10, training.step(10))
        remove_old(folder, keep_last=1)
        training.moments = {"m": torch.zeros(2**20)}
        training.step(20)
        training.save(20)
        ended = training.saved()
        spoiler.join(PATIENCE_SECONDS)
        if done == [True]:
            break
    assert done == [True]
    assert ended.path is None
    assert ended.error.startswith(f"{folder}/step-00000020: the disk gives back other bytes than were written (model.")
    path, loaded, passed_over = load_newest(folder)
    assert path == folder / "step-00000010"
    assert loaded is not None
    assert float(loaded.weights["w"][0]) == 10
    assert passed_over == []
    assert names(folder) == checkpoints(10)
