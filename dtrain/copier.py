"""Copies checkpoints behind a URL, beside everything else; a newer one takes the place of one that waits."""

import threading
from collections.abc import Collection
from pathlib import Path
from queue import SimpleQueue

from dtrain.bucket import Bucket
from dtrain.checkpoint import CancelledError, Keep, checkpoint_name, list_checkpoints, step_of
from shard_tools.errors import UserError


class Copier:
    """One copy at a time, in a thread that ends when nothing is left to copy."""

    def __init__(self, bucket: Bucket, *, keep_last: int, log: Collection[Path]) -> None:
        """With each checkpoint go the files `log` as they are then."""
        self._bucket = bucket
        self._keep_last = keep_last
        self._log = log
        self._lock = threading.Lock()
        self._next: tuple[Path, Keep] | None = None
        self._current: Path | None = None
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._ended: SimpleQueue[tuple[int, str]] = SimpleQueue()

    def copy(self, checkpoint: Path, keep: Keep) -> None:
        """Begin, after the copy that is under way.

        Besides it, those beside it that are to be kept are copied if they are not there yet; old ones there are then
        removed, but for `keep`.
        """
        with self._lock:
            self._next = (checkpoint, keep)
            if self._thread is None:
                self._cancelled = threading.Event()
                self._thread = threading.Thread(target=self._work, args=(self._cancelled,), name="copier", daemon=True)
                self._thread.start()

    @property
    def needed(self) -> set[int]:
        """The steps of the checkpoints that are being copied, or wait for it: they must not be removed."""
        with self._lock:
            return {step_of(path.name) for path in (self._current, self._next and self._next[0]) if path}

    def cancel(self) -> None:
        """Give up the copy that is under way, at its next file, and the one that waits; nobody waits for them."""
        with self._lock:
            self._next, self._current, self._thread = None, None, None
            self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """At most so long, until nothing is left to copy; whether that is so."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def ended(self) -> list[tuple[int, str]]:
        """The steps that were copied since this was asked last, each with what went wrong, or ""."""
        return [self._ended.get() for _ in range(self._ended.qsize())]

    def _work(self, cancelled: threading.Event) -> None:
        while True:
            with self._lock:
                if cancelled.is_set():
                    return
                if self._next is None:
                    self._current = self._thread = None
                    return
                (checkpoint, keep), self._next = self._next, None
                self._current = checkpoint
            step = step_of(checkpoint.name)
            try:
                self._bucket.upload(checkpoint, self._log, cancelled.is_set)
                self._copy_kept(checkpoint.parent, keep, cancelled)
                self._bucket.remove_old(step, self._keep_last, keep, cancelled.is_set)
            except CancelledError:
                return
            except Exception as error:
                if cancelled.is_set():
                    return
                self._ended.put((step, str(error) or type(error).__name__))
            else:
                self._ended.put((step, ""))

    def _copy_kept(self, folder: Path, keep: Keep, cancelled: threading.Event) -> None:
        """Copy what is kept here for good and was passed over before, for a newer one."""
        here = {step_of(path.name) for path in list_checkpoints(folder)}
        for step in sorted(here.intersection(keep(here.union(self._bucket.whole(self._bucket.steps()))))):
            kept = folder / checkpoint_name(step)
            try:
                self._bucket.upload(kept, self._log, cancelled.is_set)
            except (OSError, UserError):
                if kept.exists():  # else it has just ceased to be one of the best
                    raise
