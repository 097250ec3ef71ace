"""Copies checkpoints behind a URL, beside everything else; a newer one takes the place of one that waits."""

import threading
from collections.abc import Collection
from pathlib import Path

from dtrain.bucket import Bucket
from dtrain.checkpoint import CancelledError, step_of


class Copier:
    """One copy at a time, in a thread that ends when nothing is left to copy."""

    def __init__(self, bucket: Bucket, *, keep_last: int, log: Collection[Path]) -> None:
        """With each checkpoint go the files `log` as they are then."""
        self._bucket = bucket
        self._keep_last = keep_last
        self._log = log
        self._lock = threading.Lock()
        self._next: tuple[Path, set[int]] | None = None
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._ended: list[tuple[int, str]] = []

    def copy(self, checkpoint: Path, keep: set[int]) -> None:
        """Begin, after the copy that is under way; old ones there are then removed, except for the steps `keep`."""
        with self._lock:
            self._next = (checkpoint, keep)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="copier", daemon=True)
                self._thread.start()

    def cancel(self) -> None:
        """Give up the copy that is under way, at its next file, and the one that waits."""
        with self._lock:
            self._next = None
            if self._thread is not None:
                self._cancelled.set()

    def wait(self) -> None:
        """Until nothing is left to copy."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def ended(self) -> list[tuple[int, str]]:
        """The steps that were copied since this was asked last, each with what went wrong, or ""."""
        ended, self._ended = self._ended, []
        return ended

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._next is None:
                    self._thread = None
                    return
                (checkpoint, keep), self._next = self._next, None
                self._cancelled.clear()
            step = step_of(checkpoint.name)
            try:
                self._bucket.upload(checkpoint, self._log, self._cancelled.is_set)
                self._bucket.remove_old(step, self._keep_last, keep)
            except CancelledError:
                continue
            except Exception as error:
                if checkpoint.exists():  # else a newer one has taken its place
                    self._ended.append((step, str(error) or type(error).__name__))
            else:
                self._ended.append((step, ""))
