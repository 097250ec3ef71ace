"""Writes checkpoints beside the training, one at a time. Knows neither steps nor processes, and says nothing itself."""

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dtrain.bucket import Bucket
from dtrain.checkpoint import CancelledError, Checkpoint, remove_old, save_checkpoint
from dtrain.copier import Copier
from dtrain.snapshot import Snapshot


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
        self._cancelled = threading.Event()
        self._ended: list[Saved] = []

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(
        self,
        global_step: int,
        checkpoint: Checkpoint,
        *,
        at: float,
        keep: Collection[int],
        urgent: bool,
    ) -> None:
        """Take a snapshot of it and begin to write that, after the one before; old ones but `keep` are then removed.

        `at` is the uptime of the process when steps stood still for it. An urgent one is not slowed down, and takes the
        place of one that is still being written.
        """
        if urgent:
            self._cancelled.set()
            if self._copier:
                self._copier.cancel()
        if self._thread is not None:
            self._thread.join()
        self._cancelled.clear()
        for snapshot, tensors in zip(self._snapshots, _tensors_of(checkpoint), strict=True):
            snapshot.take(tensors)
        self._thread = threading.Thread(
            target=self._write, args=(global_step, at, checkpoint.state, set(keep), urgent), name="saver", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written or copied."""
        if self._thread is not None:
            self._thread.join()
        if self._copier:
            self._copier.wait()

    def ended(self) -> list[Saved]:
        """What became of those that ended since this was asked last."""
        ended, self._ended = self._ended, []
        return ended

    def copied(self) -> list[tuple[int, str]]:
        """The steps whose checkpoints were copied behind the URL since this was asked last; what went wrong, or ""."""
        return self._copier.ended() if self._copier else []

    def _write(self, global_step: int, at: float, state: dict[str, Any], keep: set[int], urgent: bool) -> None:
        if not urgent:
            # On Linux a thread is scheduled on its own; like this, only while a core has nothing else to do.
            with suppress(OSError, AttributeError):
                os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        began = time.monotonic()
        path, error = None, ""
        try:
            self._sync()
            weights, optimizer, average = (snapshot.on_host() for snapshot in self._snapshots)
            checkpoint = Checkpoint(weights, optimizer, state, average)
            path = save_checkpoint(self._folder, global_step, checkpoint, cancelled=self._cancelled.is_set)
            if self._copier:
                self._copier.copy(path, keep)
            remove_old(self._folder, self._keep_last, keep)
        except CancelledError:
            return
        except Exception as failure:  # whatever it is, nobody may take this one for saved
            error = str(failure) or type(failure).__name__
        self._ended.append(Saved(global_step, at, time.monotonic() - began, path, error))


def _tensors_of(checkpoint: Checkpoint) -> tuple[Mapping[str, Tensor], ...]:
    return checkpoint.weights, checkpoint.optimizer, checkpoint.average
