"""The data that benchmarks run on: made once by the project's own commands, under bench/data."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "data"


def sample_tree(size: int, *, backgrounds: int = 12, foregrounds: int = 6) -> Path:
    """A tree of rooms of side `size`, 12 × 6 × 40 = 2,880 tuples by default; kept between calls."""
    tree = FOLDER / f"rooms{size}-{backgrounds}x{foregrounds}"
    _run("sample", str(tree), "--backgrounds", str(backgrounds), "--foregrounds", str(foregrounds), "--size", str(size))
    return tree


def tree_and_shards(size: int, *, backgrounds: int = 12, foregrounds: int = 6) -> tuple[Path, Path]:
    """That tree and its shards of 200 tuples."""
    tree = sample_tree(size, backgrounds=backgrounds, foregrounds=foregrounds)
    shards = tree.with_name(tree.name + "-shards")
    _run("build", str(tree), str(shards), "--shard-size", "200")
    return tree, shards


def _run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "shard_tools", *command], check=True, stdout=subprocess.DEVNULL)
