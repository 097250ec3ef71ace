"""Ends a process that stands still, with a message that says where. Restarting it is the launcher's business.

A collective hangs for ever if one process never joins it, and with NCCL it hangs on the device, where no exception
reaches. So a thread of each process looks at the clock; all of them see it at about the same time, and ask each other
through the launcher's store who is still there to answer.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from dtrain.stop_request import StopRequest

ANSWER_SECONDS = 3.0
STARTING = "starting"


class Watchdog:
    """Started before the processes look for each other; told of every sign of progress."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        request: StopRequest,
        leave_seconds: float,
        on_hang: Callable[[str, int], None],
    ) -> None:
        """`leave_seconds` after a signal the process ends at the latest, before the launcher kills it.

        `on_hang` is told the message and the step, by the watching thread, before the process ends. Before anything was
        begun it is not, and the process does not wait for anybody whose launcher is gone.
        """
        self._rank, self._world_size = rank, world_size
        self._request = request
        self._on_hang = on_hang
        self._leave_seconds = leave_seconds
        self._limit = float("inf")
        self._seen = time.monotonic()
        self._step, self._doing = 0, STARTING
        self._silent = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def allow(self, seconds: float) -> None:
        """From now on, so long may pass between two signs of progress."""
        self._limit = seconds
        self._seen = time.monotonic()

    def progress(self, step: int, doing: str) -> None:
        """A sign: the process is in step `step` (of the whole run, from 1), and `doing` something from now on."""
        self._step, self._doing = step, doing
        self._seen = time.monotonic()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._limit / 4)):
            still = time.monotonic() - self._seen
            if still > self._limit:
                self._end(f"no progress for {still:.0f} s")
            if self._doing == STARTING and self._waits_in_vain():
                self._end(str(self._request.reason))
            told = self._request.seconds_ago()
            if told > self._leave_seconds:
                self._end(f"told to stop by {self._request.reason} {told:.0f} s ago, and still busy")

    def _waits_in_vain(self) -> bool:
        """Whether the processes that this one looks for will not come: all of them were told to stop, or are gone."""
        alone = self._world_size > 1 and not dist.is_initialized()
        return self._request.launcher_is_gone or (alone and self._request.reason is not None)

    def _end(self, what: str) -> None:
        """Say it, and end the process, even if what is asked or told for that hangs as well."""
        self._silent = ""
        self._within(2 * ANSWER_SECONDS, self._ask_who_is_silent)
        message = f"process {self._rank}: {what} in step {self._step} ({self._doing}){self._silent}"
        print(f"{message}; ends here; the same command goes on from the newest checkpoint", file=sys.stderr, flush=True)
        if self._doing != STARTING:
            self._within(ANSWER_SECONDS, lambda: self._on_hang(message, self._step))
        os._exit(1)

    def _within(self, seconds: float, do: Callable[[], None]) -> None:
        thread = threading.Thread(target=do, daemon=True)
        thread.start()
        thread.join(seconds)

    def _ask_who_is_silent(self) -> None:
        """Which other processes do not see the same: those that hang as a whole, or are gone."""
        if self._world_size == 1 or not dist.is_initialized():
            return
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
            store.set(f"dtrain/stands/{self._rank}", self._doing)
            time.sleep(ANSWER_SECONDS)
            told = {
                rank: store.get(f"dtrain/stands/{rank}").decode() if store.check([f"dtrain/stands/{rank}"]) else None
                for rank in range(self._world_size)
                if rank != self._rank
            }
        except Exception:
            return
        silent = [str(rank) for rank, doing in told.items() if doing is None]
        others = [f"process {rank} is {doing}" for rank, doing in told.items() if doing not in (None, self._doing)]
        parts = [*([f"process {', '.join(silent)} does not answer"] if silent else []), *others]
        self._silent = f"; {'; '.join(parts)}" if parts else ""
