"""Writes checkpoints beside the training, one at a time. Knows neither steps nor processes, and says nothing itself."""

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from dtrain.bucket import Bucket
from dtrain.checkpoint import CancelledError, Checkpoint, Keep, list_checkpoints, remove_old, save_checkpoint, step_of
from dtrain.copier import Copier
from dtrain.snapshot import Snapshot

HASTE_SECONDS = 3.0
"""So long a save that gives way to other work may take once it is waited for."""
LOWEST_PRIORITY = 19
"""Of a thread, by which it gives way to the steps.

One that only runs on an idle core would never run where other programs leave none, and the steps would wait until it
lets go of the interpreter.
"""


@dataclass(frozen=True)
class Saved:
    """What became of a checkpoint."""

    global_step: int
    at: float
    """Uptime of the process when steps stood still for the snapshot, in seconds."""
    seconds: float
    """From the snapshot to the end."""
    path: Path | None
    """Where it lies; None if it was not written."""
    error: str = ""
    """What went wrong: with the checkpoint if there is no path, else with removing old ones."""
    busy_seconds: float = 0.0
    """Processor time of it, which the steps may have lost."""


class Saver:
    """Takes snapshots, and has a thread write them that gives way to the steps."""

    def __init__(
        self, folder: Path, *, keep_last: int, bucket: Bucket | None, log: Collection[Path], sync: Callable[[], None]
    ) -> None:
        """`sync` makes the files `log` durable, before a checkpoint counts on them; it may raise OSError."""
        self._folder = folder
        self._keep_last = keep_last
        self._copier = Copier(bucket, keep_last=keep_last, log=log) if bucket else None
        self._sync = sync
        self._snapshots = Snapshot(), Snapshot(), Snapshot()
        self._thread: threading.Thread | None = None
        self._written: tuple[int, Keep] | None = None
        self._missed = False
        self._cancelled = threading.Event()
        self._hurried = threading.Event()
        self._ended: SimpleQueue[Saved] = SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, global_step: int, checkpoint: Checkpoint, *, at: float, keep: Keep, urgent: bool) -> None:
        """Take a snapshot of it and begin to write that, after the one before; old ones but `keep` are then removed.

        `at` is the uptime of the process when steps stood still for it. An urgent one is not slowed down, and takes the
        place of one that is still being written; but one of another step that is to be kept has HASTE_SECONDS first.
        """
        if urgent:
            self._give_up_for(global_step)
        self.wait()
        if urgent and self._copier:
            self._copier.cancel()
        self._cancelled.clear()
        self._hurried.clear()
        for snapshot, tensors in zip(self._snapshots, _tensors_of(checkpoint), strict=True):
            snapshot.take(tensors)
        self._written = global_step, keep
        self._thread = threading.Thread(
            target=self._write, args=(global_step, at, checkpoint.state, keep, urgent), name="saver", daemon=True
        )
        self._thread.start()

    def copy(self, checkpoint: Path, keep: Keep) -> None:
        """Copy one that was written before behind the URL, if it is not there."""
        if self._copier:
            self._copier.copy(checkpoint, keep)

    def wait(self, seconds: float = math.inf) -> bool:
        """At most so long, until nothing is being written, which makes haste now; whether that is so."""
        self._hurried.set()
        if self._thread is not None:
            self._thread.join(None if seconds == math.inf else seconds)
        return not self.busy

    def wait_for_copies(self, seconds: float) -> bool:
        """At most so long, until nothing is left to copy; whether that is so."""
        return self._copier is None or self._copier.wait(seconds)

    def ended(self) -> list[Saved]:
        """What became of those that ended since this was asked last."""
        return [self._ended.get() for _ in range(self._ended.qsize())]

    def copied(self) -> list[tuple[int, str]]:
        """The steps whose checkpoints were copied behind the URL since this was asked last; what went wrong, or ""."""
        return self._copier.ended() if self._copier else []

    def close(self) -> None:
        """Let what is being written come to its end, and give up copies."""
        self.wait()
        if self._copier:
            self._copier.cancel()

    def _give_up_for(self, global_step: int) -> None:
        """Give up what is being written, but not at once if it is to be kept and nobody will write it again."""
        if self._written is None or not self.busy:
            return
        step, keep = self._written
        here = {step_of(path.name) for path in list_checkpoints(self._folder)}
        self._missed = step != global_step and step in keep(here | {step})
        if not self._missed or not self.wait(HASTE_SECONDS):
            self._cancelled.set()

    def _write(self, global_step: int, at: float, state: dict[str, Any], keep: Keep, urgent: bool) -> None:
        if not urgent:
            with suppress(OSError, AttributeError):  # on Linux, a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        rest = _Rest(self._cancelled, None if urgent else self._hurried)
        began = time.monotonic()
        path, error = None, ""
        try:
            self._sync()
            weights, optimizer, average = (snapshot.on_host() for snapshot in self._snapshots)
            checkpoint = Checkpoint(weights, optimizer, state, average)
            path = save_checkpoint(self._folder, global_step, checkpoint, cancelled=rest)
            if self._copier:
                self._copier.copy(path, keep)
            copied = self._copier.needed if self._copier else set()
            remove_old(self._folder, self._keep_last, lambda steps: copied.union(keep(steps)))
        except CancelledError:
            if not self._missed:
                return
            error = f"it was not done in {HASTE_SECONDS:g} s when the run was told to stop"
        except Exception as failure:  # whatever it is, nobody may take this one for saved
            error = str(failure) or type(failure).__name__
        self._ended.put(Saved(global_step, at, time.monotonic() - began, path, error, time.thread_time()))


class _Rest:
    """To be called between pieces of work: takes a rest as long as the piece took; returns whether to give up."""

    def __init__(self, cancelled: threading.Event, hurried: threading.Event | None) -> None:
        """No rest once `hurried` is set; none at all without it."""
        self._cancelled = cancelled
        self._hurried = hurried
        self._since = time.monotonic()

    def __call__(self) -> bool:
        if self._hurried is not None:
            self._hurried.wait(time.monotonic() - self._since)
            self._since = time.monotonic()
        return self._cancelled.is_set()


def _tensors_of(checkpoint: Checkpoint) -> tuple[Mapping[str, Tensor], ...]:
    return checkpoint.weights, checkpoint.optimizer, checkpoint.average
