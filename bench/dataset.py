"""The data that benchmarks run on: made once by the project's own commands, under bench/data."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "data"


def tree_and_shards(size: int, *, backgrounds: int = 12, foregrounds: int = 6) -> tuple[Path, Path]:
    """A tree of rooms of side `size` and its shards (12 × 6 × 40 = 2,880 tuples by default); kept between calls."""
    tree = FOLDER / f"rooms{size}-{backgrounds}x{foregrounds}"
    shards = tree.with_name(tree.name + "-shards")
    counts = ["--backgrounds", str(backgrounds), "--foregrounds", str(foregrounds), "--size", str(size)]
    for command in (["sample", str(tree), *counts], ["build", str(tree), str(shards), "--shard-size", "200"]):
        subprocess.run([sys.executable, "-m", "shard_tools", *command], check=True, stdout=subprocess.DEVNULL)
    return tree, shards
