"""A tiny data set and the means to launch, watch, and take away real trainings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LAUNCH_TIMEOUT = 240.0
WATCH_TIMEOUT = 120.0

TRAIN_SAMPLES, TEST_SAMPLES, BATCH, EPOCHS = 120, 40, 12, 6
STEPS = TRAIN_SAMPLES // BATCH
TOTAL_STEPS = STEPS * EPOCHS


@dataclass
class Launched:
    """A training under the real launcher, with all that it prints in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def tree(self) -> list[psutil.Process]:
        """The launcher and every process below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def finish(self) -> int:
        """Wait for the end and return the exit status of the launcher."""
        return self.process.wait(LAUNCH_TIMEOUT)

    def succeed(self) -> "Launched":
        """Wait for the end, which must be a good one."""
        assert self.finish() == 0, self.output
        return self

    def kill(self) -> None:
        """SIGKILL to every process at once: what a machine that loses power looks like."""
        for process in self.tree():
            process.send_signal(signal.SIGKILL)
        self.process.wait(LAUNCH_TIMEOUT)


@dataclass
class Run:
    """A run folder and how to train in it."""

    folder: Path
    shards: Path

    def launch(self, *options: str, processes: int = 2) -> Launched:
        """Start `accelerate launch … -m dtrain train` as a user would; `options` override keys."""
        config = self.folder.with_suffix(".yaml")
        config.write_text(
            yaml.safe_dump(
                {
                    "run": str(self.folder),
                    "data": {"manifest": str(self.shards), "workers": 1},
                    "model": {"width": 0.0625},
                    "stages": [
                        {"size": 16, "batch": BATCH, "epochs": 2},
                        {"size": 32, "batch": BATCH, "epochs": EPOCHS - 2},
                    ],
                    "checkpoint": {"every": "7 steps"},
                    "evaluate": {"every_epochs": 2, "batch": 16},
                    "log": {"every_steps": 1, "audit": True},
                }
            )
        )
        number = len(list(self.folder.parent.glob(f"{self.folder.name}-*.log")))
        log = self.folder.parent / f"{self.folder.name}-{number}.log"
        command = [
            *(str(BIN / "accelerate"), "launch", "--config_file", str(ROOT / "accelerate_config.yaml")),
            *("--num_processes", str(processes), "-m", "dtrain", "train", str(config), *options),
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        return Launched(process, log)

    def train(self, *options: str, processes: int = 2) -> "Run":
        """Train to the end."""
        self.launch(*options, processes=processes).succeed()
        return self

    def wait_for_step(self, launched: Launched, step: int) -> None:
        """Return as soon as global step `step` is logged."""
        deadline = time.monotonic() + WATCH_TIMEOUT
        while self.last_step() < step:
            assert launched.process.poll() is None, launched.output
            assert time.monotonic() < deadline, launched.output
            time.sleep(0.01)

    def last_step(self) -> int:
        """The last global step in metrics.jsonl; 0 if there is none."""
        return max((line["global_step"] for line in self.lines("metrics.jsonl")), default=0)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSON Lines file of the run."""
        try:
            text = (self.folder / name).read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines("events.jsonl") if line["event"] == kind]

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return status

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())

    def final(self) -> dict[str, bytes]:
        """The bytes of what a run ends with: weights, optimizer state, and everything that was logged as learned."""
        last = self.folder / "checkpoints" / f"step-{TOTAL_STEPS:08d}"
        files = [last / "model.safetensors", last / "optimizer.safetensors", self.folder / "metrics.jsonl"]
        return {path.name: path.read_bytes() for path in files}

    def consumed(self) -> dict[tuple[int, int, int], set[str]]:
        """Keys of every global batch by (stage, epoch, step), put together from what all processes noted.

        A step that was done again after a kill must have had the same keys on the same rank.
        """
        batches: dict[tuple[int, int, int], set[str]] = {}
        for path in sorted((self.folder / "audit").glob("rank-*.jsonl")):
            for line in self.lines(f"audit/{path.name}"):
                place = (line["stage"], line["epoch"], line["step"])
                batches.setdefault(place, set()).update(line["keys"])
        return batches


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 training and 40 test tuples of 32×32 pixels in shards of 16, made by the real commands."""
    folder = tmp_path_factory.mktemp("data")
    rooms, packed = folder / "rooms", folder / "shards"
    for command in (
        ["sample", str(rooms), "--backgrounds", "4", "--foregrounds", "1", "--size", "32"],
        ["build", str(rooms), str(packed), "--shard-size", "16"],
    ):
        subprocess.run([str(BIN / "shard-tools"), *command], check=True, cwd=ROOT)
    return packed


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Iterator[Run]:
    """A run that has not begun. No process of it may be left when the test ends."""
    yield Run(tmp_path / "run", shards)
    left = [process for process in psutil.process_iter() if _mentions(process, str(tmp_path))]
    for process in left:
        process.kill()
    assert not left


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Run:
    """A run on two processes that nothing happened to."""
    return Run(tmp_path_factory.mktemp("undisturbed") / "run", shards).train()


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return process.pid != os.getpid() and any(text in argument for argument in process.cmdline())
    except psutil.Error:
        return False
