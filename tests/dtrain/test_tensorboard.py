"""Curves for TensorBoard: every step of metrics.jsonl once, whatever became of the files that hold them."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtrain.run_folder import RunFolder
from dtrain.tensorboard import TensorBoard


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def begin(run: RunFolder, step: int = 0) -> TensorBoard:
    """What a session does that goes on after `step`; in a second of its own, as sessions are."""
    time.sleep(1 - time.time() % 1)
    return TensorBoard(run, Accelerator(cpu=True, project_dir=str(run.path)), step)


def train(run: RunFolder, tensorboard: TensorBoard | None, steps: range) -> None:
    """Log some steps and save; without TensorBoard as another machine does."""
    for step in steps:
        run.add_metrics({"kind": "train", "global_step": step, "loss": 1 / step})
        if tensorboard:
            tensorboard.add({"train/loss": 1 / step}, step)
    if tensorboard:
        tensorboard.flush()


def steps_in(run: RunFolder) -> list[int]:
    """Those of the curve, as TensorBoard shows it."""
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def files_in(run: RunFolder) -> list[Path]:
    return sorted(run.tensorboard.glob("events.*"))


def test_steps_of_another_machine_are_added(run: RunFolder) -> None:
    train(run, begin(run), range(1, 7))
    train(run, None, range(7, 21))
    again = begin(run, 20)
    train(run, again, range(21, 24))
    assert steps_in(run) == [*range(1, 24)]


def test_steps_whose_points_a_power_cut_took_are_added(run: RunFolder) -> None:
    """The file is as long as it was when the kernel wrote it last."""
    train(run, begin(run), range(1, 7))
    (file,) = files_in(run)
    os.truncate(file, file.stat().st_size - 100)
    begin(run, 6).flush()
    assert steps_in(run) == [*range(1, 7)]


def test_a_power_cut_between_two_sessions_takes_points_of_the_first(run: RunFolder) -> None:
    train(run, begin(run), range(1, 7))
    train(run, begin(run, 6), range(7, 10))
    first, _ = files_in(run)
    os.truncate(first, first.stat().st_size - 100)
    begin(run, 9).flush()
    assert steps_in(run) == [*range(1, 10)]


def test_killed_while_it_makes_them_anew_it_begins_again(run: RunFolder) -> None:
    """Then there are files, but nothing that says that they are whole."""
    train(run, begin(run), range(1, 7))
    (file,) = files_in(run)
    for note in set(run.tensorboard.iterdir()) - {file}:
        note.write_text(note.read_text()[:-5])
    os.truncate(file, 300)
    begin(run, 6).flush()
    assert steps_in(run) == [*range(1, 7)]


def test_what_is_there_is_not_made_again(run: RunFolder) -> None:
    """A start is quick, however long the curves are. Steps after the checkpoint, from before a kill, are forgotten."""
    first = begin(run)
    train(run, first, range(1, 7))
    size = run.metrics.stat().st_size
    train(run, None, range(7, 9))
    first.add({"train/loss": 1 / 7}, 7)
    first.finish()
    before = {path: path.read_bytes() for path in files_in(run)}
    run.truncate_metrics(size)
    train(run, begin(run, 6), range(7, 9))
    assert steps_in(run) == [*range(1, 9)]
    assert {path: path.read_bytes() for path in before} == before
    assert len(files_in(run)) == 2


def test_a_folder_that_vanishes_is_no_traceback(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    tensorboard = begin(run)
    train(run, tensorboard, range(1, 3))
    shutil.rmtree(run.tensorboard)
    train(run, tensorboard, range(3, 5))
    tensorboard.mend()
    train(run, tensorboard, range(5, 7))
    assert steps_in(run) == [*range(1, 7)]
    assert printed == []

    def fail() -> None:
        raise OSError("of somebody else")

    other = threading.Thread(target=fail)
    other.start()
    other.join()
    assert [str(each.exc_value) for each in printed] == ["of somebody else"]
