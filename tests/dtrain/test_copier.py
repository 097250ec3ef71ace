"""Copies of checkpoints behind a URL: what is to be kept is there, and no slow one holds up another."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from dtrain.best import best_steps
from dtrain.bucket import Bucket
from dtrain.checkpoint import Checkpoint, Keep, checkpoint_name, save_checkpoint
from dtrain.copier import Copier
from dtrain.saver import Saver
from shard_tools.storage import LocalStorage

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class SlowStorage(LocalStorage):
    """A folder to which the files of one checkpoint go only when they are let through."""

    slow: str = ""
    reached: threading.Event = field(default_factory=threading.Event)
    let_through: threading.Event = field(default_factory=threading.Event)

    def upload(self, name: str, source: Path) -> None:
        if name.startswith(self.slow):
            self.reached.set()
            assert self.let_through.wait(PATIENCE_SECONDS)
        super().upload(name, source)


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, Checkpoint({"w": torch.full((3,), float(step))}, {}, {"global_step": step}))


def whole(folder: Path) -> list[str]:
    """Checkpoints that count: their list of files is there."""
    return sorted(path.parent.name for path in folder.glob("*/files.json"))


def checkpoints(*steps: int) -> list[str]:
    return [checkpoint_name(step) for step in steps]


def those(steps: Iterable[int]) -> Keep:
    kept = set(steps)
    return lambda there: kept


def test_the_best_that_lies_only_behind_the_url_is_kept_there(tmp_path: Path) -> None:
    """As on a machine that fetched the newest one and went on from it."""
    here, there = tmp_path / "here", tmp_path / "there"
    write(there, 10, 30)
    write(here, 30)
    figures = {10: 0.9, 30: 0.5}

    def best(steps: Iterable[int]) -> list[int]:
        return best_steps({step: figures[step] for step in steps if step in figures}, "mask_iou", 1)

    saver = Saver(here, keep_last=1, bucket=Bucket(LocalStorage(there)), log=(), sync=lambda: None)
    saver.save(40, Checkpoint({"w": torch.ones(3)}, {}, {}), at=0.0, keep=best, urgent=False)
    assert saver.wait(PATIENCE_SECONDS)
    assert saver.wait_for_copies(PATIENCE_SECONDS)
    assert saver.copied() == [(40, "")]
    assert whole(there) == checkpoints(10, 40)
    assert whole(here) == checkpoints(30, 40), "of those that are here it is the best"


def test_what_a_newer_one_took_the_place_of_is_copied_if_it_is_to_be_kept(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, 4, 8, 12)
    copier = Copier(Bucket(LocalStorage(there)), keep_last=1, log=())
    copier.copy(here / "step-00000012", those([4]))
    assert copier.wait(PATIENCE_SECONDS)
    assert copier.ended() == [(12, "")]
    assert whole(there) == checkpoints(4, 12)


def test_one_that_lies_here_and_is_not_the_best_of_all_does_not_go_there_and_back(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(there, 10)
    write(here, 30, 40)
    sent: list[str] = []

    class Watched(LocalStorage):
        def upload(self, name: str, source: Path) -> None:
            sent.append(name.split("/", maxsplit=1)[0])
            super().upload(name, source)

    figures = {10: 0.9, 30: 0.5}

    def best(steps: Iterable[int]) -> list[int]:
        return best_steps({step: figures[step] for step in steps if step in figures}, "mask_iou", 1)

    copier = Copier(Bucket(Watched(there)), keep_last=1, log=())
    copier.copy(here / checkpoint_name(40), best)
    assert copier.wait(PATIENCE_SECONDS)
    assert set(sent) == {checkpoint_name(40)}
    assert whole(there) == checkpoints(10, 40)


@pytest.fixture
def slow(tmp_path: Path) -> SlowStorage:
    return SlowStorage(tmp_path / "there", slow=checkpoint_name(4))


def test_an_urgent_one_does_not_wait_for_a_copy_that_is_under_way(tmp_path: Path, slow: SlowStorage) -> None:
    saver = Saver(tmp_path / "here", keep_last=2, bucket=Bucket(slow), log=(), sync=lambda: None)

    def save(step: int, *, urgent: bool) -> None:
        saver.save(step, Checkpoint({"w": torch.ones(3)}, {}, {}), at=0.0, keep=those([]), urgent=urgent)
        assert saver.wait(PATIENCE_SECONDS)

    save(4, urgent=False)
    assert slow.reached.wait(PATIENCE_SECONDS)
    assert not saver.wait_for_copies(0.05)
    save(5, urgent=True)
    assert saver.wait_for_copies(PATIENCE_SECONDS)
    assert saver.copied() == [(5, "")]
    assert whole(slow.root) == checkpoints(5)
    slow.let_through.set()
    save(6, urgent=False)
    assert saver.wait_for_copies(PATIENCE_SECONDS)
    assert whole(slow.root) == checkpoints(5, 6), "the one that was given up never gets its list of files"


def test_a_saver_that_closes_leaves_a_slow_copy_behind(tmp_path: Path, slow: SlowStorage) -> None:
    saver = Saver(tmp_path / "here", keep_last=2, bucket=Bucket(slow), log=(), sync=lambda: None)
    saver.save(4, Checkpoint({"w": torch.ones(3)}, {}, {}), at=0.0, keep=those([]), urgent=False)
    assert slow.reached.wait(PATIENCE_SECONDS)
    closing = threading.Thread(target=saver.close)
    closing.start()
    closing.join(PATIENCE_SECONDS)
    assert not closing.is_alive()
    assert whole(tmp_path / "here") == checkpoints(4)
    slow.let_through.set()


def test_what_is_being_copied_is_not_removed_here_however_slow_that_is(tmp_path: Path, slow: SlowStorage) -> None:
    saver = Saver(tmp_path / "here", keep_last=1, bucket=Bucket(slow), log=(), sync=lambda: None)
    for step in (4, 5, 6):
        saver.save(step, Checkpoint({"w": torch.ones(3)}, {}, {}), at=0.0, keep=those([]), urgent=False)
        assert saver.wait(PATIENCE_SECONDS)
        assert slow.reached.wait(PATIENCE_SECONDS)
    assert whole(tmp_path / "here") == checkpoints(4, 6)
    slow.let_through.set()
    assert saver.wait_for_copies(PATIENCE_SECONDS)
    assert saver.copied() == [(4, ""), (6, "")], "a newer one takes the place of one that waits"
    assert whole(slow.root) == checkpoints(6)


def test_one_that_was_given_up_and_fails_later_is_not_told_of(tmp_path: Path) -> None:
    class Failing(SlowStorage):
        def upload(self, name: str, source: Path) -> None:
            super().upload(name, source)
            if name.startswith(self.slow):
                raise OSError("timed out")

    storage = Failing(tmp_path / "there", slow=checkpoint_name(4))
    write(tmp_path / "here", 4, 5)
    copier = Copier(Bucket(storage), keep_last=2, log=())
    copier.copy(tmp_path / "here" / checkpoint_name(4), those([]))
    assert storage.reached.wait(PATIENCE_SECONDS)
    (given_up,) = [thread for thread in threading.enumerate() if thread.name == "copier"]
    copier.cancel()
    copier.copy(tmp_path / "here" / checkpoint_name(5), those([]))
    assert copier.wait(PATIENCE_SECONDS)
    storage.let_through.set()
    given_up.join(PATIENCE_SECONDS)
    assert copier.ended() == [(5, "")]
