"""A tiny tree of real JPEGs in the nested layout, and the command line as a process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """Write a tree with the given numbers of backgrounds, foregrounds and placements; returns its folder."""

    def make(
        name: str = "photos",
        *,
        backgrounds: int = 4,
        foregrounds: int = 2,
        placements: int = 5,
        size: tuple[int, int] = (24, 16),
        mask_folder: str = "mask",
        suffix: str = "jpg",
    ) -> Path:
        root = tmp_path / name
        random = np.random.default_rng(7)

        def save(path: str, *, gray: bool) -> None:
            shape = (size[1], size[0]) if gray else (size[1], size[0], 3)
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(target)

        for b in range(1, backgrounds + 1):
            save(f"bg/bg{b}.{suffix}", gray=False)
            for f in range(1, foregrounds + 1):
                for k in range(1, placements + 1):
                    save(f"bg{b}/fg_{f}/overlay/{k}.{suffix}", gray=False)
                    save(f"bg{b}/fg_{f}/depth/{k}.{suffix}", gray=True)
                    save(f"bg{b}/fg_{f}/{mask_folder}/{k}.{suffix}", gray=True)
        return root

    return make


@pytest.fixture
def shard_tools() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `shard-tools` with the given arguments to its end."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shard_tools", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return run
