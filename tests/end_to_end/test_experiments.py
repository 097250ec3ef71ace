"""A set of experiments by the real command: interrupted, with one that fails, mended, and then left alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.training import Training

from .conftest import BATCH, BIN, ROOT, STEPS, TEST_SAMPLES, WATCH_TIMEOUT

EPOCHS = 3
ENDS_AFTER = EPOCHS * STEPS
SIZE, LARGER = 16, 24
FIRST, BROKEN = "adam", "broken"


@dataclass
class Set:
    """A folder of configurations and the command that runs them."""

    configs: Path
    out: Path
    shards: Path

    def write(self, *, broken_shards: Path) -> None:
        """Two experiments and what they share; the second one reads other shards than the first, and larger images."""
        self.configs.mkdir(exist_ok=True)
        stage, larger = (f"{{size: {size}, batch: {BATCH}, epochs: {EPOCHS}}}" for size in (SIZE, LARGER))
        shared = f"run: shared\nmodel: {{width: 0.03125}}\nlog: {{every_steps: 1}}\nstages: [{stage}]\n"
        (self.configs / "base.yaml").write_text(f"{shared}data: {{manifest: '{self.shards}', workers: 0}}\n")
        (self.configs / f"{FIRST}.yaml").write_text("extends: base.yaml\noptimizer: {name: adam}\n")
        (self.configs / f"{BROKEN}.yaml").write_text(
            f"extends: base.yaml\ndata: {{manifest: '{broken_shards}'}}\nstages: [{larger}]\n"
        )

    def start(self, *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "dtrain", "experiments", str(self.configs), "--out", str(self.out), *options],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def training(self, name: str) -> Training:
        return Training(self.out / name)

    def comparison(self) -> str:
        return (self.out / "comparison.md").read_text()


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status, and all that was printed."""
    output = process.communicate(timeout=WATCH_TIMEOUT)[0]
    return process.returncode, output


def evaluated(training: Training) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((training.folder / "evaluation.json").read_text())
    return found


@pytest.fixture
def experiments(tmp_path: Path, shards: Path) -> Set:
    return Set(tmp_path / "configs", tmp_path / "out", shards)


def test_a_set_is_stopped_goes_on_tells_what_failed_and_does_nothing_twice(experiments: Set, tmp_path: Path) -> None:
    experiments.write(broken_shards=tmp_path / "nowhere")
    first, broken = experiments.training(FIRST), experiments.training(BROKEN)

    interrupted = experiments.start()
    deadline = time.monotonic() + WATCH_TIMEOUT
    while first.last_step() < 2:
        assert interrupted.poll() is None, finish(interrupted)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    status, output = finish(interrupted)
    assert status == 128 + signal.SIGINT, output
    assert f"[1/2] {FIRST}: stopped by SIGINT; the same command goes on from there" in output
    assert first.status()["state"] == "preempted"
    assert not broken.folder.exists()

    status, output = finish(experiments.start())
    assert status == 1, output
    assert "1 of 2 experiments failed" in output
    assert re.search(rf"{BROKEN}: training: exit status 1", output), output
    assert [event["event"] for event in first.events("start", "resume")] == ["start", "resume"]
    assert [line["global_step"] for line in first.lines("metrics.jsonl") if line["kind"] == "train"] == [
        *range(1, ENDS_AFTER + 1)
    ]
    assert evaluated(first)["samples"] == TEST_SAMPLES
    assert FIRST in experiments.comparison()
    assert BROKEN not in experiments.comparison()

    experiments.write(broken_shards=experiments.shards)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.is_file()}
    status, output = finish(experiments.start("--launch", "accelerate launch --cpu --num_processes 1 -m"))
    assert status == 0, output
    assert f"{FIRST}: finished before" in output
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.is_file()} == before
    assert broken.status()["state"] == "done"

    text = experiments.comparison()
    for metric in ("IoU", "AbsRel", "Boundary F1"):
        assert metric in text
    assert re.search(r"^\| optimizer\.name +\| adam \| adamw \|$", text.replace("\\", ""), flags=re.MULTILINE), text
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures
    assert all((experiments.out / picture).read_text().startswith("<svg") for picture in pictures)
    page = (experiments.out / "comparison.html").read_text()
    assert FIRST in page
    assert BROKEN in page

    assert [(evaluated(run)["input_size"], evaluated(run)["size"]) for run in (first, broken)] == [
        (SIZE, LARGER),
        (LARGER, LARGER),
    ]
    assert f"judged at {LARGER} px" in text

    logs = [run.folder / "events.jsonl" for run in (first, broken)]
    before = {path: path.stat().st_mtime_ns for path in logs}
    status, output = finish(experiments.start("--judge-at", str(SIZE), "--only", FIRST))
    assert status == 0, output
    assert [evaluated(run)["size"] for run in (first, broken)] == [SIZE, SIZE], "or they could not be compared"
    assert {path: path.stat().st_mtime_ns for path in logs} == before, "nothing was trained again"
    assert f"judged at {SIZE} px" in experiments.comparison()
