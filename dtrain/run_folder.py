"""The run folder and its small files: config, status, metrics, events, lock.

The main process writes; the others add events about what they alone have met, so all have to see the folder.

metrics.jsonl holds what was learned and is the same for a run that was killed and one that was not; events.jsonl
holds what happened to the run and when.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dtrain.config import Config, load_config
from dtrain.lines import Lines
from dtrain.uptime import uptime
from shard_tools.atomic import sync_directory, write_atomically
from shard_tools.errors import UserError

LOCK_WAIT_SECONDS = 30.0
LONGEST_LINE_BYTES = 2**16
LOCK_PATIENCE_SECONDS = 2.0

State = Literal["running", "preempted", "done", "failed"]


class RunFolder:
    """Paths of a run and the ways to read and write them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.evaluation = path / "evaluation.json"
        self.evaluation_picture = path / "evaluation.png"
        self.worst_picture = path / "evaluation_worst.png"
        self.best_picture = path / "evaluation_best.png"
        self.report = path / "report.html"
        self.trackers = path / "trackers.json"
        self.nonfinite = path / "nonfinite"
        self.checkpoints = path / "checkpoints"
        self.panels = path / "panels"
        self.audit = path / "audit"
        self.profile = path / "profile"
        self.tensorboard = path / "tensorboard"
        self.tracker_folders = (path / "mlflow", path / "wandb", path / ".aim")
        self._folders = (
            *(self.checkpoints, self.panels, self.audit, self.profile, self.nonfinite),
            *(self.tensorboard, *self.tracker_folders),
        )
        self._results = (
            *(self.evaluation, self.evaluation_picture, self.worst_picture, self.best_picture),
            self.report,
        )
        self._files = (self.config, self.status, self.metrics, self.events, self.trackers, *self._results)
        self.metrics_lines = Lines(self.metrics)
        self.event_lines = Lines(self.events)
        self._obeyed = path / ".obeyed"
        self._lock: int | None = None
        self.locked = False
        """By this process."""

    def require(self) -> "RunFolder":
        """Return self; UserError unless this is a run folder."""
        if not self.config.is_file():
            raise UserError(f"{self.path}: not a run folder (no config.yaml); expected the `run` of a training")
        return self

    def load_config(self, overrides: Sequence[str] = ()) -> Config:
        """The resolved configuration that the run was started with, with other values for some keys."""
        return load_config(self.require().config, overrides)

    def lock(self) -> None:
        """Keep other trainings out until this process ends, however it ends; once it does, this does nothing.

        Processes of a run that was just killed may hold the lock until their next step, so this waits a while.
        Raises UserError if the folder stays locked or can't be written, or if it holds files of somebody else by the
        names that a run gives to its own, which it would overwrite.
        """
        if self.locked:
            return
        lock = self.path / ".lock"
        foreign = [] if lock.exists() else [path.name for path in self._folders + self._files if path.exists()]
        if foreign:
            raise UserError(
                f"{self.path}: holds {', '.join(foreign)}, but no .lock, so no training made them; choose another "
                f"folder with --run (for a copied run: make an empty {lock})"
            )
        try:
            missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for path in missing:
                sync_directory(path.parent)
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{self.path}: the run folder can't be written: {error.strerror}; choose another with --run"
            ) from None
        began = time.monotonic()
        told = False
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - began
                holder = os.pread(self._lock, 100, 0).decode(errors="replace").strip()
                if waited > LOCK_WAIT_SECONDS:
                    raise UserError(
                        f"{self.path}: another training runs in this folder ({holder}); "
                        "wait for it, end it, or choose another folder with --run"
                    ) from None
                if waited > LOCK_PATIENCE_SECONDS and not told:
                    told = True
                    print(
                        f"{self.path}: another training still holds this folder ({holder}); waits for its end, at most "
                        f"{LOCK_WAIT_SECONDS:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        self.locked = True
        with suppress(OSError):  # it only helps people
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def clear(self, but: Collection[Path] = ()) -> None:
        """Remove all that a training wrote here, and nothing else."""
        for path in self._folders:
            shutil.rmtree(path, ignore_errors=True)
        for path in self._files:
            if path not in but:
                path.unlink(missing_ok=True)

    def forget_results(self) -> None:
        """Remove what was made from a trained network."""
        for path in self._results:
            path.unlink(missing_ok=True)

    def read_status(self) -> dict[str, Any]:
        """The content of status.json; empty if there is none."""
        try:
            status = json.loads(self.status.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.status}: can't be read: {error}; remove it") from None
        if not isinstance(status, dict):
            raise UserError(f"{self.status}: expected a JSON object; remove it")
        return status

    def write_status(self, state: State, reason: str, global_step: int) -> None:
        """Say how the run stands; a launcher's exit code does not."""
        status = {
            "state": state,
            "reason": reason,
            "global_step": global_step,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomically(self.status, json.dumps(status, indent=1) + "\n")

    def note_obeyed(self, order: str) -> None:
        """Note that what somebody asked for by `order` is done, and need not be done again."""
        write_atomically(self._obeyed, order)

    def has_obeyed(self, order: str) -> bool:
        """Whether `order` is what was obeyed last."""
        with suppress(FileNotFoundError):
            return self._obeyed.read_text(errors="replace") == order
        return False

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.metrics_lines.add(line)

    def last_metrics(self, global_step: int) -> list[dict[str, Any]]:
        """The lines at the end of metrics.jsonl that are of this step."""
        found: list[dict[str, Any]] = []
        with suppress(FileNotFoundError), self.metrics.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LONGEST_LINE_BYTES, 0))
            for text in reversed(file.read().splitlines()):
                line = json.loads(text)
                if line["global_step"] != global_step:
                    break
                found.insert(0, line)
        return found

    def evaluations(self, metric: str) -> dict[int, tuple[int, float]]:
        """The image size and a figure of all evaluations that have it, by the step after which they were made."""
        found = {}
        with suppress(FileNotFoundError), self.metrics.open(encoding="utf-8") as lines:
            for text in lines:
                if '"kind": "evaluate"' in text:
                    line = json.loads(text)
                    if metric in line["metrics"]:
                        found[line["global_step"]] = (line["size"], line["metrics"][metric])
        return found

    def add_event(self, event: str, global_step: int, **details: Any) -> None:
        """Append a line to events.jsonl, with the time, and how long this process has run."""
        line = {"time": time.time(), "uptime": round(uptime(), 3), "event": event, "global_step": global_step}
        self.event_lines.add({**line, **details})

    def write_nonfinite(self, global_step: int, content: dict[str, Any]) -> None:
        """Keep what a step was made of that was skipped."""
        with suppress(OSError):
            self.nonfinite.mkdir(exist_ok=True)
            write_atomically(self.nonfinite / f"step-{global_step:08d}.json", json.dumps(content, indent=1) + "\n")

    def count_starts(self) -> int:
        """How often the run was started or resumed, according to its events."""
        with suppress(FileNotFoundError), self.events.open(encoding="utf-8") as lines:
            return sum(1 for line in lines if '"event": "start"' in line or '"event": "resume"' in line)
        return 0

    def truncate_metrics(self, size: int) -> None:
        """Forget the lines written after the checkpoint at which metrics.jsonl had `size` bytes."""
        with self.metrics.open("ab") as file:
            if file.tell() < size:
                raise UserError(
                    f"{self.metrics}: {file.tell()} bytes, but the checkpoint was written when it had {size}; "
                    "put the file back as it was, or start anew with --fresh"
                )
            file.truncate(size)
