"""The benchmark of packing runs; how fast anything is, is not asserted here."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.shard_tools.conftest import make_tree as make_tree  # noqa: PLC0414 - a fixture

ROOT = Path(__file__).parents[2]


def test_all_contenders_pack_the_same_tuples(make_tree: Callable[..., Path], tmp_path: Path) -> None:
    source, figures = make_tree(backgrounds=2, foregrounds=2, placements=3), tmp_path / "pack.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.pack", "--source", source, "--folder", tmp_path),
            *("--tuples", "600", "--rounds", "1", "--json", figures),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(figures.read_text())
    assert result["tuples"] == 600
    assert set(result["rates"]) == {"GNU tar cf", "webdataset ShardWriter", "ours, 1 worker", "ours, 2 workers"}
    assert result["ratio_tar"] > 0
    assert result["ratio_webdataset"] > 0
    assert not (tmp_path / "pack-scratch").exists()
