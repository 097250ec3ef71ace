"""A command as a process of its own, which is told to stop when this one is. Knows nothing of what it runs."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from dtrain.stop_request import SUBORDINATE, StopRequest

LEAVE_SECONDS = 60.0
"""A training that is told to stop saves and leaves within half of it."""
POLL_SECONDS = 0.2


def run_command(
    command: Sequence[str], request: StopRequest, *, quiet: bool = False, leave_seconds: float = LEAVE_SECONDS
) -> int:
    """Run a command to its end, or to the one that `request` asks for, and return its exit status.

    It has a process group of its own, so that Ctrl-C in a terminal reaches it once, from here and as SIGTERM. If it has
    not left `leave_seconds` later, its group is killed. `quiet` drops its standard output. Raises OSError if it
    can't be started.
    """
    output = subprocess.DEVNULL if quiet else None
    environment = os.environ | {SUBORDINATE: "1"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, process_group=0, env=environment)
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
