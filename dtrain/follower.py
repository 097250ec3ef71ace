"""Brings what metrics.jsonl and panels/ hold to a tracker, from a thread of its own, which no training waits for.

Where the tracker fails, it is tried again from the point that failed; the files are the queue, so nothing piles up.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dtrain.points import read_steps
from dtrain.run_folder import RunFolder
from dtrain.trackers import Tracker
from shard_tools.atomic import write_atomically
from shard_tools.errors import UserError

OPEN_SECONDS = 120.0
POLL_SECONDS = 1.0
RETRY_SECONDS = 15.0


class Notes:
    """trackers.json: by the name of a tracker its project, the id of its run and the last step that it was sent."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if there is such a file that can't be read."""
        self._path = path
        self._lock = threading.Lock()
        self._notes: dict[str, dict[str, Any]] = {}
        try:
            self._notes = json.loads(path.read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: can't be read: {error}; remove it, and the trackers get new runs") from None

    def get(self, tracker: str, project: str) -> tuple[str | None, int]:
        """The id of the tracker's run in that project, and the last step it was sent; (None, -1) if there is none."""
        note = self._notes.get(tracker, {})
        return (note["id"], note["step"]) if note.get("project") == project else (None, -1)

    def put(self, tracker: str, project: str, run_id: str, step: int) -> None:
        """Write it down. Raises OSError if that can't be done; it is not lost then, but written with the next one."""
        with self._lock:
            self._notes[tracker] = {"project": project, "id": run_id, "step": step}
            write_atomically(self._path, json.dumps(self._notes, indent=1) + "\n")


class Follower:
    """On the main process alone; one for each tracker. Among Accelerate's trackers only to be closed by it.

    A step's points are sent together, as soon as there is a later step or the run is done, for a tracker may take each
    step only once.
    """

    def __init__(
        self,
        tracker: Tracker,
        run: RunFolder,
        accelerator: Accelerator,
        project: str,
        hyperparameters: Mapping[str, Any],
        notes: Notes,
        *,
        leave_seconds: float,
        done_seconds: float,
    ) -> None:
        """Open the tracker's run; where there is one already, that is done on the way, and may fail for a while.

        `finish` takes `done_seconds` at most if the run is done, else `leave_seconds`.
        Raises UserError if the tracker has no run yet and can't begin one.
        """
        self.name = f"{tracker.name}, followed"
        self._tracker = tracker
        self._run = run
        self._accelerator = accelerator
        self._project = project
        self._hyperparameters = hyperparameters
        self._notes = notes
        self._leave_seconds, self._done_seconds = leave_seconds, done_seconds
        self._begins = tracker.run_id is None
        self._sent = notes.get(tracker.name, project)[1]
        self._offset = 0
        self._behind = False
        self._closed = False
        self._done = False
        self._error: Exception | None = None
        self._opened = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=tracker.name, daemon=True)
        self._thread.start()
        if self._begins:
            self._require_open()

    def finish(self) -> None:
        """Send what is left, for a limited time, and say what could not be sent."""
        self._done = self._run.read_status().get("state") == "done"
        self._closing.set()
        self._thread.join(self._done_seconds if self._done else self._leave_seconds)
        if not self._closed and (self._behind or self._thread.is_alive()):
            after = f"after step {self._sent}" if self._sent >= 0 else "from the first one"
            later = "" if self._done else "; the same command goes on with that, too"
            self._warn(f"may lack what {self._run.metrics} holds {after}{later}")

    def _require_open(self) -> None:
        if not self._opened.wait(OPEN_SECONDS):
            problem = f"did not answer within {OPEN_SECONDS:.0f} s"
        elif self._error is not None:
            problem = f"can't be opened: {type(self._error).__name__}: {self._error}"
        else:
            return
        name = self._tracker.name
        raise UserError(f"log.trackers: {name} {problem}; {self._tracker.way_out}; or leave {name} out")

    def _follow(self) -> None:
        while not self._try(self._open):
            if self._begins or self._closing.wait(RETRY_SECONDS):
                return
        while not self._closing.wait(RETRY_SECONDS if self._error else POLL_SECONDS):
            self._try(self._catch_up)
        self._closed = self._try(self._catch_up) and self._try(self._tracker.close)

    def _try(self, do: Callable[[], None]) -> bool:
        """Whether it worked; whatever a tracker raises must not reach the training."""
        try:
            do()
        except Exception as error:
            if self._error is None and not (self._begins and not self._opened.is_set()):
                self._warn(f"{type(error).__name__}: {error}; training goes on, and what is missing is sent later")
            self._error, self._behind = error, True
            self._opened.set()
            return False
        if self._error is not None:
            self._warn("works again")
        self._error, self._behind = None, False
        self._opened.set()
        return True

    def _open(self) -> None:
        self._tracker.open(self._accelerator, self._project, self._run.path)
        if self._begins:
            self._note(-1)
            self._tracker.describe(self._hyperparameters)
        last = self._tracker.last_step()
        self._sent = self._sent if last is None else last

    def _catch_up(self) -> None:
        for points in read_steps(self._run.metrics, self._offset):
            if points.last and not (self._closing.is_set() and self._done):
                self._offset = points.begin
                break
            if points.step > self._sent and points.figures:
                panel = self._run.panels / f"step-{points.step:08d}.png"
                self._tracker.send(points.step, points.figures, panel if panel.is_file() else None)
                self._sent = points.step
            self._offset = points.begin
        self._note(self._sent)

    def _note(self, step: int) -> None:
        run_id = self._tracker.run_id
        assert run_id is not None, "it is open"
        if self._notes.get(self._tracker.name, self._project) != (run_id, step):
            self._notes.put(self._tracker.name, self._project, run_id, step)

    def _warn(self, what: str) -> None:
        print(f"log.trackers: {self._tracker.name}: {what}", file=sys.stderr, flush=True)
