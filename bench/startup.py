"""Seconds from the start of a trainer's process to the end of its first step, beside an import of torch and no more.

A run of a small network on small images is resumed again and again, in turns: as one process, and as two under
`accelerate launch`. The clock is that of the trainer's own process; what the launcher takes before stands apart. What
counts is the difference to torch in the same round. Needs a quiet machine.

    python -m bench.startup --json startup.json
    python -m bench.startup --width 1     # the network of the write-up, with checkpoints of 290 MB
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from bench.dataset import build, sample_tree
from bench.turns import Figures, say

ROOT = Path(__file__).parents[1]
LAUNCH = (str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", "accelerate_config.yaml")
PROCESSES = 2
LIMIT_SECONDS = 300.0

SMALL = 1 / 16
"""A width of the network with which loading and computing take next to no time."""

PARTS = {
    "open": "imports, process group, data set opened, checkpoint chosen and checked",
    "build": "network and optimizer, checkpoint loaded, curves opened, first batch there",
    "step": "the first step",
}
"""What a start consists of, one after the other."""

NEVER = 1_000_000


@dataclass(frozen=True)
class Run:
    """A run that does not end by itself."""

    folder: Path
    config: Path

    def go_on(self, launcher: tuple[str, ...] = (sys.executable,)) -> Figures:
        """Resume, or begin, until a first step is done, then stop; seconds of `PARTS`, and of the launcher before them.

        Raises RuntimeError with what the trainer printed if it does not get there.
        """
        log = self.folder.with_suffix(".log")
        known = len(self._events())
        began = time.time()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*launcher, "-m", "dtrain", "train", str(self.config)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                events = self._wait_for_first_step(process, known)
            finally:
                process.terminate()
                process.wait(LIMIT_SECONDS)
        if "first_step" not in events:
            raise RuntimeError(f"the training did not come to its first step:\n{log.read_text(errors='replace')}")
        opened = events.get("resume") or events["start"]
        moments = (0.0, opened["uptime"], events["first_step"]["began"], events["first_step"]["uptime"])
        parts = {part: after - before for part, (before, after) in zip(PARTS, pairwise(moments), strict=True)}
        return {"launcher": opened["time"] - opened["uptime"] - began, **parts}

    def _wait_for_first_step(self, process: subprocess.Popen[bytes], known: int) -> Mapping[str, dict[str, Any]]:
        """Events by name, of those after the first `known`."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            ended = process.poll() is not None or time.monotonic() > deadline
            events = {event["event"]: event for event in self._events()[known:]}
            if "first_step" in events or ended:
                return events
            time.sleep(0.02)

    def _events(self) -> list[dict[str, Any]]:
        try:
            text = (self.folder / "events.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]


def prepare(folder: Path, width: float) -> Run:
    """A run in `folder` that has not begun."""
    shards = build(sample_tree(32, backgrounds=4, foregrounds=1), 10)
    run = Run(folder / "run", folder / "config.yaml")
    config = {
        "run": str(run.folder),
        "data": {"manifest": str(shards), "workers": 1},
        "model": {"width": width},
        "stages": [{"size": 32, "batch": 12, "epochs": NEVER}],
        "evaluate": {"every_epochs": NEVER},
    }
    run.config.write_text(yaml.safe_dump(config))
    return run


def import_torch() -> Figures:
    """From the start of an interpreter until torch is there; the interpreter's end is not counted."""
    began = time.perf_counter()
    command = [sys.executable, "-c", "import torch; print(flush=True)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return {"import": time.perf_counter() - began}


def measure(run: Run, rounds: int, *, warm_up: bool) -> Figures:
    """Medians over the rounds. With `warm_up` one comes before, which begins the run, so all others resume it."""
    contenders: dict[str, Callable[[], Figures]] = {
        "torch": import_torch,
        "startup": run.go_on,
        f"startup_{PROCESSES}": lambda: run.go_on((*LAUNCH, "--num_processes", str(PROCESSES))),
    }
    found: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name, contender in contenders.items():
            seconds = contender()
            said = ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items())
            say(f"round {number} of {rounds}{'' if number else ' (warms up)'}: {name}: {said}")
            if number:
                found[name].append(seconds)
    torch = [seconds["import"] for seconds in found.pop("torch")]
    figures = {"torch_import_seconds": statistics.median(torch)}
    for name, starts in found.items():
        whole = [sum(seconds[part] for part in PARTS) for seconds in starts]
        over = [seconds - alone for seconds, alone in zip(whole, torch, strict=True)]
        figures[f"{name}_seconds"] = statistics.median(whole)
        figures[f"{name}_over_torch_seconds"] = statistics.median(over)
        for part in ("launcher", *PARTS):
            figures[f"{name}_{part}_seconds"] = statistics.median(seconds[part] for seconds in starts)
    return figures


def show(figures: Figures) -> None:
    """Print the figures as a table."""

    def line(label: str, of: str) -> None:
        cells = [figures[f"startup{processes}_{of}"] for processes in ("", f"_{PROCESSES}")]
        print(f"{label:76}" + "".join(f"{cell:12.2f}" for cell in cells))

    print(f"{'seconds':76}{'1 process':>12}{f'{PROCESSES} launched':>12}")
    for part, label in PARTS.items():
        line(f"  {label}", f"{part}_seconds")
    line("from the start of the process to the end of the first step", "seconds")
    line(f"  the same less an import of torch, {figures['torch_import_seconds']:.2f}", "over_torch_seconds")
    line("before that, the launcher", "launcher_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of all contenders, after one that does not count")
    parser.add_argument("--width", type=float, default=SMALL, help="of the network (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round, which begins the run; no figures to be quoted")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="startup-") as folder:
        run = prepare(Path(folder), arguments.width)
        figures = measure(run, 1 if arguments.quick else arguments.rounds, warm_up=not arguments.quick)
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
