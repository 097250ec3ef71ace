"""Killed again and again at random moments, runs end like the one that was let alone; what differs would be seen."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from torch.utils.tensorboard import SummaryWriter

from bench.chaos_check import problems_of_run
from bench.training import Training

from .conftest import ROOT

KILLS = 6
SEED = 1938
"""Its first six kills have every victim, signal and kind of moment, and come early."""
TIMEOUT = 280


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench.chaos", "--steps", "30", "--seed", str(SEED), "--run", str(folder)]
    return subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trainings_of(folder: Path) -> list[psutil.Process]:
    """Processes of launches that print into `folder`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("BENCH_LAUNCH_LOG", "").startswith(str(folder)):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of six kills, and what was printed."""
    folder = tmp_path_factory.mktemp("chaos") / "runs"
    process = start(folder, "--kills", str(KILLS), "--json", str(folder.with_suffix(".json")))
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    yield folder, output
    assert not trainings_of(folder)


def test_six_kills_make_no_difference(chaos: tuple[Path, str]) -> None:
    folder, output = chaos
    result = json.loads(folder.with_suffix(".json").read_text())
    assert result["details"] == [], output
    assert result["differences"] == 0
    assert result["kills"] == sum(result["kills_by_kind"].values()) == KILLS
    assert f"{KILLS} kills, " in output
    assert "differences: 0" in output
    logs = sorted(path.name for path in folder.glob("launch-*.log"))
    assert len(logs) == result["launches"] >= KILLS
    for number in range(1, result["runs"] + 1):
        assert Training(folder / f"run-{number}").status()["state"] == "done"


def test_each_difference_is_seen(chaos: tuple[Path, str], tmp_path: Path) -> None:
    """Or six kills without one would mean nothing."""
    folder, _ = chaos
    undisturbed = Training(folder / "undisturbed")
    changed = Training(Path(shutil.copytree(folder / "run-1", tmp_path / "changed")))
    last = changed.checkpoints()[-1]
    weights = changed.folder / "checkpoints" / last / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for name in ("metrics.jsonl", "audit/rank-1.jsonl"):
        path = changed.folder / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]))
    with SummaryWriter(str(changed.folder / "tensorboard")) as writer:
        writer.add_scalar("train/loss", 0.5, 1)

    problems = problems_of_run(changed, undisturbed, same_processes=True)
    assert f"file: checkpoints/{last}/model.safetensors differs" in problems
    assert "file: metrics.jsonl differs" in problems
    assert "TensorBoard: train/loss differs" in problems
    assert "rank-1.jsonl" in problems[0], "of dtrain audit"
    assert len(problems) == 5, problems

    problems = problems_of_run(changed, undisturbed, same_processes=False)
    assert [problem.split(":")[0] for problem in problems] == ["audit", "log", "TensorBoard"]

    shutil.rmtree(weights.parent)
    assert any(
        "the last checkpoint is" in problem for problem in problems_of_run(changed, undisturbed, same_processes=True)
    )


def test_when_it_is_ended_no_training_is_left(tmp_path: Path) -> None:
    process = start(tmp_path / "runs")
    deadline = time.monotonic() + TIMEOUT
    while len(trainings_of(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, output
    assert not trainings_of(tmp_path)
