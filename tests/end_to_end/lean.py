"""Trainings that start with less around them than `accelerate launch`, and what tests of signals and kills share."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtrain.checkpoint import Checkpoint, load_checkpoint

from ..servers import free_port
from .conftest import ROOT, Launched, Run

GRACE_SECONDS = 30
"""What launchers leave after a signal."""

WATCH_SECONDS = 120


@dataclass
class Lean(Run):
    """A run with the configuration of another, which torchrun starts: half of what `accelerate launch` takes."""

    like: Run
    options: tuple[str, ...] = ()
    """For each of its launches."""
    logs: Path | None = None
    """Where to put what they print; None: beside the run folder."""

    def launch(self, *options: str, processes: int = 2, max_restarts: int = 0) -> Launched:
        """Start it; `options` override keys."""
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return self._start([*launcher, "--max-restarts", str(max_restarts), "-m", "--", "dtrain"], options, {})

    def launch_ranks(self, *options: Sequence[str]) -> list[Launched]:
        """Start processes without a launcher between, as `srun` does, each with options of its own."""
        port = str(free_port())
        started = []
        for rank, of_rank in enumerate(options):
            place = {"RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": str(len(options))}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            started.append(self._start(["dtrain"], of_rank, place | address))
        return started

    def launch_alone(self, *options: str) -> Launched:
        """Start one process without a launcher."""
        return self._start(["dtrain"], options, {})

    def cut_back(self, step: int) -> "Lean":
        """Be a copy of `like` as it was when it had just written its checkpoint of global step `step`, and was killed.

        Its metrics go on beyond that, as those of a run whose later checkpoints are lost.
        """
        shutil.copytree(self.like.folder, self.folder)
        for path in (self.folder / "checkpoints").iterdir():
            if path.name > f"step-{step:08d}":
                shutil.rmtree(path)
        (self.folder / "status.json").write_text(json.dumps({"state": "running"}))
        return self

    def _start(self, module: list[str], options: Sequence[str], variables: Mapping[str, str]) -> Launched:
        """`python -m MODULE train …`, in an environment with more `variables`."""
        logs = self.logs or self.folder.parent
        number = len(list(logs.glob(f"{self.folder.name}-*.log")))
        log = logs / f"{self.folder.name}-{number}.log"
        config = self.like.folder / "config.yaml"
        keys = ["--run", str(self.folder), "--data.manifest", str(self.shards), *self.options, *options]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, "train", str(config), *keys],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Launched(process, log)


def trainers(launched: Launched) -> list[psutil.Process]:
    """The training processes by rank, without what launched them and what decodes for them."""
    found = {}
    for process in launched.tree():
        rank = process.environ().get("RANK")
        if rank is not None and "decode_process" not in str(process.cmdline()):
            found[int(rank)] = process
    assert found, "they are not there yet"
    return [found[rank] for rank in sorted(found)]


def wait_until(happened: Callable[[], object], *launched: Launched) -> None:
    """Return as soon as it has happened, which must be while all that was launched is alive."""
    deadline = time.monotonic() + WATCH_SECONDS
    while not happened():
        for each in launched:
            assert each.process.poll() is None, each.output
            assert time.monotonic() < deadline, each.output
        time.sleep(0.002)


def all_gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether these processes end within what a launcher would leave them."""
    return not psutil.wait_procs(processes, timeout=GRACE_SECONDS)[1]


def checkpoint_of(run: Run, step: int) -> Checkpoint:
    """What is in the run's checkpoint of a step."""
    return load_checkpoint(run.folder / "checkpoints" / f"step-{step:08d}")


def curve(run: Run, name: str = "train/loss") -> list[tuple[int, float]]:
    """A curve as TensorBoard shows it."""
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]
