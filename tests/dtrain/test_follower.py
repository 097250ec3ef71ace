"""What a tracker gets of a run's files: every step once, in order, whatever fails or is killed on the way."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from dtrain import follower
from dtrain.follower import Follower, Followers, Note, Notes
from dtrain.run_folder import RunFolder
from dtrain.trackers import Tracker
from shard_tools.errors import UserError

from .test_points import line

PATIENCE_SECONDS = 120.0
ROOT = Path(__file__).parents[2]


class Shelf(Tracker):
    """Keeps its runs as files of lines in a folder beside the run folder.

    It fails while there is a file `broken`, which may name what fails, and hangs while there is a file `hangs`.
    """

    name = "shelf"
    way_out = "mend the shelf"

    def open(self, accelerator: Accelerator, project: str, run: Path) -> None:
        self._folder = run.parent / "shelf"
        self._work("open")
        self._folder.mkdir(exist_ok=True)
        self.run_id = self.run_id or f"{project}-{len([*self._folder.glob('*.jsonl')])}"
        self._add({"opened": True})

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        self._work("describe")
        self._add({"described": dict(hyperparameters)})

    def send(self, step: int, figures: Mapping[str, float], panel: Path | None) -> None:
        self._work("send")
        self._add({"step": step, "figures": dict(figures), "panel": panel.name if panel else None})

    def close(self) -> None:
        self._work("close")
        self._add({"closed": True})

    def _work(self, what: str) -> None:
        beside = self._folder.parent
        while (beside / "hangs").exists():
            time.sleep(0.01)
        if (beside / "broken").exists() and (beside / "broken").read_text() in ("", what):
            raise ConnectionError("the shelf fell down")

    def _add(self, entry: dict[str, Any]) -> None:
        with (self._folder / f"{self.run_id}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _arguments(self, project: str, run: Path) -> dict[str, Any]:
        raise NotImplementedError

    def _id(self) -> str:
        raise NotImplementedError


class Training:
    """What a training does with its run folder and its followers."""

    def __init__(self, run: Path) -> None:
        self.run = RunFolder(run)
        run.mkdir(exist_ok=True)

    def follow(self, **hyperparameters: Any) -> Followers:
        """Begin or go on."""
        notes = Notes(self.run.trackers)
        note = notes.get("shelf", "project")
        followers = Followers(self.run, leave_seconds=5, done_seconds=5)
        tracker = Shelf(note.id)
        followers.add(Follower(tracker, self.run, Accelerator(cpu=True), hyperparameters, notes, note))
        return followers

    def log(self, *steps: int) -> None:
        """Do steps."""
        for step in steps:
            self.run.add_metrics(json.loads(line(step, loss=step / 8)))

    def end(self, followers: Followers, state: Any = "preempted") -> None:
        """Stop or be done."""
        self.run.write_status(state, "", 0)
        followers.finish()

    def shelves(self) -> list[list[dict[str, Any]]]:
        """What the tracker has of each of its runs."""
        files = sorted((self.run.path.parent / "shelf").glob("*.jsonl"))
        return [[json.loads(text) for text in file.read_text().splitlines()] for file in files]

    def steps(self) -> list[int]:
        """The steps that the only run of the tracker has, as they came."""
        (shelf,) = self.shelves()
        return [entry["step"] for entry in shelf if "step" in entry]

    def count(self, key: str) -> int:
        """How often something else happened to it."""
        return sum(key in entry for shelf in self.shelves() for entry in shelf)


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.setattr(follower, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(follower, "RETRY_SECONDS", 0.02)
    return Training(tmp_path / "run")


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_step_comes_once_with_its_picture(training: Training) -> None:
    followers = training.follow(batch=6)
    training.run.panels.mkdir()
    (training.run.panels / "step-00000002.png").touch()
    training.log(1, 2)
    training.run.add_metrics(json.loads(line(2, "evaluate", mask_iou=0.5)))
    training.log(3)
    training.end(followers, "done")

    assert training.shelves() == [
        [
            {"opened": True},
            {"described": {"batch": 6}},
            {"step": 1, "figures": {"train/loss": 0.125}, "panel": None},
            {"step": 2, "figures": {"train/loss": 0.25, "test/mask_iou": 0.5}, "panel": "step-00000002.png"},
            {"step": 3, "figures": {"train/loss": 0.375}, "panel": None},
            {"closed": True},
        ]
    ]


def test_the_last_step_waits_for_the_next_one_or_the_end(training: Training) -> None:
    followers = training.follow()
    training.log(1, 2, 3)
    wait_until(lambda: training.steps() == [1, 2])
    training.end(followers, "preempted")
    assert training.steps() == [1, 2], "an evaluation may still follow on step 3"

    followers = training.follow()
    training.run.add_metrics(json.loads(line(3, "evaluate", mask_iou=0.5)))
    training.log(4)
    training.end(followers, "done")

    assert training.steps() == [1, 2, 3, 4]
    assert training.shelves()[0][-3]["figures"] == {"train/loss": 0.375, "test/mask_iou": 0.5}
    assert training.count("opened") == 2
    assert training.count("described") == 1


def test_steps_that_are_done_again_after_a_kill_are_not_sent_again(training: Training) -> None:
    program = f"""
import time
from pathlib import Path
from tests.dtrain.test_follower import Training

training = Training(Path({str(training.run.path)!r}))
training.follow()
training.log(1, 2, 3, 4, 5)
time.sleep(100)
"""
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_until(lambda: Notes(training.run.trackers).get("shelf", "project").step == 4)
    killed.kill()
    killed.wait()
    assert training.steps() == [1, 2, 3, 4]

    training.run.truncate_metrics(2 * len(line(1, loss=0.125)))  # its last checkpoint was that of step 2
    followers = training.follow()
    training.log(3, 4, 5, 6)
    training.end(followers, "done")

    assert training.steps() == [1, 2, 3, 4, 5, 6]


def test_what_failed_is_sent_later(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    followers = training.follow()
    training.log(1, 2)
    wait_until(lambda: training.steps() == [1])
    broken = training.run.path.parent / "broken"
    broken.touch()
    training.log(3, 4)
    time.sleep(0.2)
    assert training.steps() == [1]
    broken.unlink()
    wait_until(lambda: training.steps() == [1, 2, 3])
    training.end(followers, "done")

    assert training.steps() == [1, 2, 3, 4]
    told = capsys.readouterr().err
    assert told.count("the shelf fell down; training goes on, and what is missing is sent later") == 1
    assert told.count("log.trackers: shelf: works again") == 1
    assert "may lack" not in told


def test_a_tracker_that_stays_broken_is_named_and_caught_up_with_by_the_next_start(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    followers = training.follow()
    training.log(1, 2)
    wait_until(lambda: training.steps() == [1])
    broken = training.run.path.parent / "broken"
    broken.touch()
    training.log(3, 4)
    training.end(followers)
    assert f"may lack what {training.run.metrics} holds after step 1; the same command" in capsys.readouterr().err

    followers = training.follow()  # it can't be opened, which stops nothing
    training.log(5)
    training.end(followers)
    assert training.steps() == [1]

    broken.unlink()
    followers = training.follow()
    training.end(followers, "done")
    assert training.steps() == [1, 2, 3, 4, 5]


def test_hyperparameters_that_could_not_be_sent_come_later(training: Training) -> None:
    broken = training.run.path.parent / "broken"
    broken.write_text("describe")
    followers = training.follow(batch=6)
    training.log(1, 2)
    training.end(followers)
    assert training.count("described") == 0

    broken.unlink()
    followers = training.follow(batch=6)
    training.end(followers, "done")
    assert training.count("described") == 1
    assert training.count("opened") == 2
    assert training.steps() == [1, 2]


def test_a_run_that_can_not_begin_at_the_tracker_does_not_begin(training: Training) -> None:
    (training.run.path.parent / "broken").touch()

    with pytest.raises(UserError, match=r"log.trackers: shelf can't be opened: .*fell down; mend the shelf; or leave"):
        training.follow()


def test_another_project_has_another_run(training: Training) -> None:
    notes = Notes(training.run.trackers)
    notes.put("shelf", Note("project", "id-1", described=True, step=7))
    notes.put("other", Note("project", "id-2"))

    again = Notes(training.run.trackers)
    assert again.get("shelf", "project") == Note("project", "id-1", described=True, step=7)
    assert again.get("other", "project") == Note("project", "id-2")
    assert again.get("shelf", "another") == Note("another")
    assert again.get("third", "project") == Note("project")


@pytest.mark.parametrize("content", ["{", "[]", '{"shelf": 3}', '{"shelf": {"id": "a"}}'])
def test_notes_that_can_not_be_read_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "trackers.json").write_text(content)

    with pytest.raises(UserError, match=r"trackers\.json: can't be read: .*; remove it, and the trackers get new runs"):
        Notes(tmp_path / "trackers.json")


def test_trackers_that_hang_have_one_time_limit_and_the_process_ends(tmp_path: Path) -> None:
    program = f"""
import atexit, sys, time
from pathlib import Path
from accelerate import Accelerator
from dtrain import follower
from dtrain.follower import Follower, Followers, Notes
from tests.dtrain.test_follower import Shelf, Training

atexit.register(time.sleep, 100)  # as a tracker's package may do
follower.EXIT_SECONDS = 1
training = Training(Path({str(tmp_path / "run")!r}))
notes = Notes(training.run.trackers)
followers = Followers(training.run, leave_seconds=1.0, done_seconds=60.0)
for _ in range(4):
    note = notes.get("none", "project")
    followers.add(Follower(Shelf(None), training.run, Accelerator(cpu=True), {{}}, notes, note))
training.log(1, 2, 3)
Path({str(tmp_path / "hangs")!r}).touch()
training.run.write_status("preempted", "", 3)
began = time.monotonic()
followers.finish()
print("took", time.monotonic() - began)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert 0.9 < float(ended.stdout.split()[1]) < 3
    assert ended.stderr.count("log.trackers: shelf: may lack what") == 4
