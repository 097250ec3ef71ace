"""A run's whole dealings with its folder, in small: begins, saves, loses two checkpoints, goes back, goes on, ends.

As a program, `python -m tests.dtrain.crash_scenario FOLDER N ...` does it once for each N in FOLDER/N, in a process
that is killed right after its N-th operation on a file.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from dtrain import tensor_file
from dtrain.bucket import Bucket
from dtrain.checkpoint import WEIGHTS, Checkpoint, checkpoint_name, save_checkpoint
from dtrain.config import Config
from dtrain.data.order import Position
from dtrain.plan import plan_run
from dtrain.resume import Start, open_run
from dtrain.run_folder import RunFolder
from dtrain.saver import Saver

from .crash_disk import Recorder

BETWEEN, KEEP_LAST, BEST = 4, 2, 8
"""Steps between two saves; how many are kept; and the one that is kept for being the best."""
SMALL_PIECES = 24
"""So that tensors of a few bytes take several writes, too."""


class Promise(NamedTuple):
    """What holds from some operation on."""

    done: int
    """Operations until then."""
    saved: tuple[int, ...]
    """Steps of whole checkpoints that the run was told to be saved, in their order, removed ones too."""
    damaged: frozenset[int] = frozenset()
    """Steps of checkpoints that something else has damaged."""


@cache
def make_config(run: Path) -> Config:
    return Config.model_validate(
        {"run": run, "data": {"manifest": "shards"}, "stages": [{"size": 24, "batch": 6, "epochs": 100}]}
    )


def line(step: int) -> dict[str, object]:
    return {"kind": "train", "global_step": step, "loss": 1 / step}


def metrics(step: int) -> bytes:
    """metrics.jsonl after a step."""
    return b"".join(json.dumps(line(number)).encode() + b"\n" for number in range(1, step + 1))


def checkpoint(step: int, config: Config) -> Checkpoint:
    """The same each time, as it is in a run that repeats its steps."""
    state = {
        "position": asdict(Position(0, *divmod(step, 5))),
        "global_step": step,
        "identity": config.identity(),
        "manifest": "digest",
        "metrics_bytes": len(metrics(step)),
        "time": 1000.0 + step,
    }
    return Checkpoint({"w": torch.full((2, 5), float(step)), "n": torch.tensor(step)}, {"m": torch.ones(7)}, state)


class Process:
    """What a training process does to its folder between its start and its end."""

    def __init__(self, path: Path, bucket: Bucket | None = None) -> None:
        self.config = make_config(path)
        self.run = RunFolder(path)
        self.loaded: Checkpoint | None = None
        self.start = self._open(bucket)
        self._logged = self.start.state.get("global_step", 0)
        self.saver = Saver(
            self.run.checkpoints, keep_last=KEEP_LAST, bucket=None, log=(self.run.metrics,), sync=self._sync
        )
        if not self.start.finished:
            self.run.write_status("running", "", self._logged)
            self.run.add_event("resume" if self._logged else "start", self._logged)

    def train_to(self, step: int) -> None:
        """Steps up to this one, and its checkpoint, while which one more is done."""
        while self._logged < step:
            self._step()
        saved = checkpoint(step, self.config)
        assert saved.state["metrics_bytes"] == self.run.metrics_lines.end()
        self.saver.save(step, saved, at=0.0, keep=lambda steps: {BEST}, urgent=False)
        self.saver.wait()
        (ended,) = self.saver.ended()
        assert ended.path, ended.error
        self.run.add_event("save", step)

    def end(self) -> None:
        """As a kill does: let go of the lock, write nothing."""
        if self.run._lock is not None:
            os.close(self.run._lock)

    def _open(self, bucket: Bucket | None) -> Start:
        def on_load(loaded: Checkpoint) -> None:
            self.loaded = loaded

        plan = plan_run(self.config, [30], rank=0, world_size=1)
        try:
            return open_run(self.run, self.config, plan, "digest", bucket=bucket, on_load=on_load)
        except BaseException:
            self.end()
            raise

    def _step(self) -> None:
        self._logged += 1
        self.run.add_metrics(line(self._logged))

    def _sync(self) -> None:
        self.run.metrics_lines.sync()
        self._step()


def life(path: Path, note: Callable[[tuple[int, ...], frozenset[int]], None]) -> None:
    """All of it; `note` is told of each promise."""
    saved: tuple[int, ...] = ()

    def train(process: Process, *steps: int) -> None:
        nonlocal saved
        for step in steps:
            process.train_to(step)
            saved = (*saved, step)
            note(saved, frozenset())

    process = Process(path)
    train(process, 4, 8, 12, 16, 20)
    process.end()

    saved = (8,)
    note(saved, frozenset({16, 20}))
    with (process.run.checkpoints / checkpoint_name(20) / WEIGHTS).open("r+b") as weights:
        weights.truncate(90)
        os.fsync(weights.fileno())
    with (process.run.checkpoints / checkpoint_name(16) / WEIGHTS).open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"?")
        weights.flush()
        os.fsync(weights.fileno())

    process = Process(path)
    assert process.start.state["global_step"] == 8
    process.train_to(16)
    saved = (8, 16)
    note(saved, frozenset())
    process.end()

    leftover = path / "checkpoints" / ".step-00000020.partial"
    leftover.mkdir()
    (leftover / WEIGHTS).write_bytes(b"begun")

    process = Process(path)
    train(process, 20)
    process.run.write_status("done", "", 20)
    process.end()

    process = Process(path)
    assert process.start.finished
    process.end()


def fill(bucket: Path, config: Config) -> None:
    """Put checkpoints of the steps 4 and 8 behind a URL."""
    for step in (4, 8):
        folder = save_checkpoint(bucket, step, checkpoint(step, config))
        (folder / "metrics.jsonl").write_bytes(metrics(step + 1))
        (folder / "events.jsonl").write_bytes(b'{"event": "start"}\n')


def main(folder: Path, numbers: list[int]) -> None:
    """Live and die once for each number, in a process of its own."""
    tensor_file.PIECE_BYTES = SMALL_PIECES
    for number in numbers:
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), f"it lived through operation {number}"
            continue
        try:
            work = folder / str(number)
            work.mkdir()
            with Recorder(work, kill_after=number):
                life(work / "run", lambda saved, damaged: None)
        finally:
            os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(text) for text in sys.argv[2:]])
