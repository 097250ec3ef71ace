"""The benchmark of starts runs; how long anything takes is not asserted here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_benchmark_starts_a_run_resumes_it_and_takes_both_apart(tmp_path: Path) -> None:
    path = tmp_path / "startup.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.startup", "--quick", "--json", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())
    for name in ("startup", "startup_2"):
        parts = [figures[f"{name}_{part}_seconds"] for part in ("open", "build", "step")]
        assert all(part > 0 for part in parts)
        assert figures[f"{name}_seconds"] == pytest.approx(sum(parts))
        assert figures[f"{name}_over_torch_seconds"] == pytest.approx(sum(parts) - figures["torch_import_seconds"])
        assert f"{figures[f'{name}_seconds']:.2f}" in done.stdout, "the table has it too"
    assert figures["startup_2_launcher_seconds"] > figures["startup_launcher_seconds"]
