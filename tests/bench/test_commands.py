"""The prepared measurements run; what they measure is not asserted here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_command_checks_and_measures_on_cpu(tmp_path: Path) -> None:
    figures = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick", "--json", str(figures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout
    result = json.loads(figures.read_text())
    assert result["preemption"]["same_samples_in_every_step"]
    assert {row["precision"] for row in result["steps"]} == {"float32", "bf16"}
    assert all(row["per_second"] > 0 for row in result["loader"])


def test_the_gpu_command_says_when_there_is_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu"],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "torch sees no GPU here" in done.stdout
