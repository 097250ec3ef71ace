"""A command as a process of its own, which is told to stop when this one is. Knows nothing of what it runs."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from dtrain.stop_request import SUBORDINATE, StopRequest
from launch.child import tied_to_us

LEAVE_SECONDS = 60.0
"""A training that is told to stop saves and leaves within half of it."""
POLL_SECONDS = 0.2


def run_command(
    command: Sequence[str], request: StopRequest, *, quiet: bool = False, leave_seconds: float = LEAVE_SECONDS
) -> int:
    """Run a command to its end, or to the one that `request` asks for, and return its exit status.

    It has a process group of its own, so that Ctrl-C in a terminal reaches it once, from here and as SIGTERM. If it has
    not left `leave_seconds` later, its group is killed. Should this process be killed, the kernel tells it to stop (on
    Linux; the calling thread has to live as long as this process). `quiet` drops its standard output. Raises OSError if
    it can't be started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else None,
        process_group=0,
        env=os.environ | {SUBORDINATE: "1"},
        preexec_fn=tied_to_us(signal.SIGTERM, signal.pthread_sigmask(signal.SIG_BLOCK, ())),  # noqa: PLW1509
    )
    deadline: float | None = None
    try:
        while deadline is None or monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_SECONDS)
            if request.reason and deadline is None:
                process.terminate()
                deadline = monotonic() + leave_seconds
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.wait(LEAVE_SECONDS)
