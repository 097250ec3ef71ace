"""Brings what metrics.jsonl and panels/ hold to a tracker, from a thread of its own, which no training waits for.

Where the tracker fails, it is tried again from the point that failed; the files are the queue, so nothing piles up.
"""

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
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
EXIT_SECONDS = 5.0


@dataclass(frozen=True)
class Note:
    """What is known of a tracker's run; without an id there is none yet."""

    project: str
    id: str | None = None
    described: bool = False
    """Whether it has the hyperparameters."""
    step: int = -1
    """The last one that it was sent."""


class Notes:
    """trackers.json: by the name of a tracker, the note of its run."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if there is such a file that can't be read."""
        self._path = path
        self._lock = threading.Lock()
        self._notes: dict[str, Note] = {}
        try:
            self._notes = {name: Note(**note) for name, note in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: can't be read: {error}; remove it, and the trackers get new runs") from None

    def get(self, tracker: str, project: str) -> Note:
        """The tracker's run in that project."""
        note = self._notes.get(tracker)
        return note if note is not None and note.project == project else Note(project)

    def put(self, tracker: str, note: Note) -> None:
        """Write it down. Raises OSError if that can't be done; it is not lost then, but written with the next one."""
        with self._lock:
            self._notes[tracker] = note
            notes = {name: asdict(note) for name, note in self._notes.items()}
            write_atomically(self._path, json.dumps(notes, indent=1) + "\n")


class Follower:
    """On the main process alone; one for each tracker.

    A step's points are sent together, as soon as there is a later step or the run is done, for a tracker may take each
    step only once.
    """

    def __init__(
        self,
        tracker: Tracker,
        run: RunFolder,
        accelerator: Accelerator,
        hyperparameters: Mapping[str, Any],
        notes: Notes,
        note: Note,
    ) -> None:
        """Open the run of the tracker that `note` is of; where there is one, on the way, and it may fail for a while.

        Raises UserError if the tracker has no run yet and can't begin one.
        """
        self._tracker = tracker
        self._run = run
        self._accelerator = accelerator
        self._hyperparameters = hyperparameters
        self._notes, self._note = notes, note
        self._begins = note.id is None
        self._sent = note.step
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

    def close(self, *, done: bool) -> None:
        """Have what is left sent, of a run that is done also the last step. Waits for nothing."""
        self._done = done
        self._closing.set()

    def wait(self, deadline: float) -> None:
        """After `close`: wait until all is sent, or time.monotonic() is `deadline`, and say what could not be sent."""
        self._thread.join(max(deadline - time.monotonic(), 0.0))
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
        self._tracker.open(self._accelerator, self._note.project, self._run.path)
        last = self._tracker.last_step()
        self._sent = self._sent if last is None else last
        self._keep(id=self._tracker.run_id, step=self._sent)

    def _catch_up(self) -> None:
        if not self._note.described:
            self._tracker.describe(self._hyperparameters)
            self._keep(described=True)
        try:
            self._send_new_steps()
        finally:
            self._keep(step=self._sent)

    def _send_new_steps(self) -> None:
        for points in read_steps(self._run.metrics, self._offset):
            if points.last and not (self._closing.is_set() and self._done):
                self._offset = points.begin
                break
            if points.step > self._sent and points.figures:
                panel = self._run.panels / f"step-{points.step:08d}.png"
                self._tracker.send(points.step, points.figures, panel if panel.is_file() else None)
                self._sent = points.step
            self._offset = points.begin

    def _keep(self, **changes: Any) -> None:
        note = replace(self._note, **changes)
        if note != self._note:
            self._note = note
            self._notes.put(self._tracker.name, note)

    def _warn(self, what: str) -> None:
        print(f"log.trackers: {self._tracker.name}: {what}", file=sys.stderr, flush=True)


class Followers:
    """All of a run's. Among Accelerate's trackers only to be closed by it."""

    name = "followers"

    def __init__(self, run: RunFolder, *, leave_seconds: float, done_seconds: float) -> None:
        """`finish` takes `done_seconds` at most if the run is done, else `leave_seconds`, however many there are."""
        self._run = run
        self._leave_seconds, self._done_seconds = leave_seconds, done_seconds
        self._all: list[Follower] = []

    def add(self, follower: Follower) -> None:
        """Have it closed, too."""
        self._all.append(follower)

    def finish(self) -> None:
        """Have all of them send what is left, at the same time, and say what could not be sent.

        When this process ends, it does so within EXIT_SECONDS, whatever the trackers' packages want to do then.
        """
        done = False
        with suppress(UserError):  # a status that can't be read
            done = self._run.read_status().get("state") == "done"
        deadline = time.monotonic() + (self._done_seconds if done else self._leave_seconds)
        for follower in self._all:
            follower.close(done=done)
        for follower in self._all:
            follower.wait(deadline)
        _limit_exit(EXIT_SECONDS, code=0 if sys.exc_info()[0] is None else 1)


def _limit_exit(seconds: float, code: int) -> None:
    """Let what is called at the exit of the interpreter take so long at most; then the process ends with `code`."""
    exits = threading.Event()

    def end() -> None:
        exits.wait()
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="exit", daemon=True).start()
    atexit.register(exits.set)
