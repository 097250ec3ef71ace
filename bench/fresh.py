"""Calls a function in a new interpreter, so that memory, open files and what is loaded are its own.

python -m bench.fresh bench.order_cost:plan_epoch '{"shards": 400, "length": 1000}'
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 300.0


def call_fresh(function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """What a function of a module gives in a new process; arguments and result pass through JSON."""
    name = f"{function.__module__}:{function.__qualname__}"
    given = json.dumps(arguments, default=str)
    done = subprocess.run(
        [sys.executable, "-m", "bench.fresh", name, given],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def resident_mb(field: str = "VmRSS") -> float:
    """The resident set of this process in MB: now, or with "VmHWM" the largest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def family_mb() -> float:
    """The memory of this process and its children in MB; what several of them share counts once."""
    rollups = [Path("/proc/self/smaps_rollup")]
    for children in Path("/proc/self/task").glob("*/children"):
        rollups += [Path(f"/proc/{child}/smaps_rollup") for child in children.read_text().split()]
    lines = [line for rollup in rollups for line in rollup.read_text().splitlines() if line.startswith("Pss:")]
    return sum(int(line.split()[1]) for line in lines) * 1024 / 1e6


def bytes_read() -> int:
    """Bytes that this process has got from read calls so far, from the page cache or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


def main() -> None:
    module, name = sys.argv[1].split(":")
    function = getattr(importlib.import_module(module), name)
    print(json.dumps(function(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
