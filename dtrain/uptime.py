"""When processes were started, and for how long this one runs, by a clock that nobody sets. Knows nothing of runs."""

import os
import time
from pathlib import Path
from typing import Literal

_IMPORTED = time.monotonic()


def started_at(process: int | Literal["self"]) -> float | None:
    """When a process was started, in seconds since the machine was, to about 10 ms; None where the system is silent."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _seconds_before_import() -> float:
    """How long the process had run when this module was imported; 0 where the system does not say."""
    started = started_at("self")
    return 0.0 if started is None else max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)


_BEFORE = _seconds_before_import()


def uptime() -> float:
    """Seconds since the process was started, to about 10 ms; changes of the wall clock do not matter."""
    return _BEFORE + time.monotonic() - _IMPORTED
