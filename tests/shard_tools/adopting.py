"""Adopting shards in a test's own process, and a folder of such shards."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shard_tools.adopt import adopt
from shard_tools.errors import UserError

from .foreign import USUAL, make_sample, write_with_webdataset

ShardTools = Callable[..., subprocess.CompletedProcess[str]]

SPLIT = ("--split", "train=train-*.tar", "--split", "test=val-*.tar")
BOTH = {"train": ["train-*.tar"], "test": ["val-*.tar"]}
GIVEN = {"fgbg": "input.jpg", "bg": "clean.jpg", "depth": "d.png", "mask": "seg.png"}


def index(
    folder: Path | str,
    patterns: dict[str, list[str]] = BOTH,
    given: dict[str, str] | None = None,
    *more: Path | str,
    force: bool = False,
    workers: int = 1,
) -> str:
    return adopt([str(folder), *map(str, more)], patterns, given or {}, force=force, workers=workers)


def refusal(
    folder: Path | str,
    patterns: dict[str, list[str]] = BOTH,
    given: dict[str, str] | None = None,
    *more: Path | str,
) -> str:
    with pytest.raises(UserError) as caught:
        index(folder, patterns, given, *more)
    return str(caught.value)


def make(folder: Path, members: dict[str, str] = USUAL, *, train: int = 8, val: int = 3, per_shard: int = 3) -> Path:
    """Training shards of 3, 3 and 2 samples, another of 3; keys begin at 000000 in both."""
    for number, (prefix, count) in enumerate((("train", train), ("val", val))):
        samples = ((f"{i:06d}", make_sample(100 * number + i, members)) for i in range(count))
        write_with_webdataset(folder, prefix, samples, per_shard)
    return folder
