"""A tiny data set and the means to launch, watch, and take away real trainings."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bench.tiny import BATCH, FIRST_EPOCHS, SECOND_EPOCHS, STEPS, TEST_SAMPLES, TRAIN_SAMPLES, make_shards, write_config
from bench.training import BIN, ROOT, Training
from bench.training import Launched as AnyLaunched

from ..made_once import made_once

__all__ = [
    "BATCH",
    "BIN",
    "EPOCHS",
    "FIRST_EPOCHS",
    "ROOT",
    "STEPS",
    "TEST_SAMPLES",
    "TOTAL_STEPS",
    "TRAIN_SAMPLES",
    "Launched",
    "Run",
]

WATCH_TIMEOUT = 120.0

MAX_LANES = 2
FEW_LANES = ("--data.max_lanes", str(MAX_LANES))

EPOCHS = FIRST_EPOCHS + SECOND_EPOCHS
TOTAL_STEPS = STEPS * EPOCHS


class Launched(AnyLaunched):
    """A training under the real launcher, with all that it prints in a file."""

    def succeed(self) -> "Launched":
        """Wait for the end, which must be a good one."""
        assert self.finish() == 0, self.output
        return self


@dataclass
class Run(Training):
    """A run folder and how to train in it."""

    shards: Path

    def launch(self, *options: str, processes: int = 2) -> Launched:
        """Start `accelerate launch … -m dtrain train` as a user would; `options` override keys."""
        config = write_config(self.folder.with_suffix(".yaml"), run=self.folder, shards=self.shards)
        number = len(list(self.folder.parent.glob(f"{self.folder.name}-*.log")))
        log = self.folder.with_name(f"{self.folder.name}-{number}.log")
        return Launched.start(config, log, *options, processes=processes)

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
    """120 training and 40 test tuples of 32×32 pixels in shards of 16, made by the real commands; not to be changed."""
    return made_once(tmp_path_factory, "data", make_shards) / "shards"


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
    return _own_copy(tmp_path_factory, "undisturbed", shards)


@pytest.fixture(scope="session")
def of_few_lanes(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Run:
    """Another one, in which a process goes from shard to shard."""
    return _own_copy(tmp_path_factory, "of_few_lanes", shards, *FEW_LANES)


def _own_copy(factory: pytest.TempPathFactory, name: str, shards: Path, *options: str) -> Run:
    """A copy for this test process of a run that is made once."""
    made = made_once(factory, name, lambda folder: Run(folder / "run", shards).train(*options))
    return Run(Path(shutil.copytree(made / "run", factory.mktemp(name) / "run")), shards)


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return process.pid != os.getpid() and any(text in argument for argument in process.cmdline())
    except psutil.Error:
        return False
