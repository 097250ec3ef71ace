"""Packing in a test's own process, and looking at what came of it."""

from pathlib import Path
from typing import Literal

from shard_tools.build import build
from shard_tools.index import parse_index
from shard_tools.manifest import read_manifest

Content = dict[str, bytes]


def pack(
    source: Path,
    out: Path,
    *,
    train: int | None = None,
    test: int | None = None,
    shard_size: int = 7,
    seed: int = 0,
    on_bad: Literal["fail", "skip"] = "fail",
) -> str:
    return build(source, out, train=train, test=test, shard_size=shard_size, seed=seed, on_bad=on_bad, workers=1)


def content(folder: Path) -> Content:
    """All files below `folder` by their relative names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def keys(out: Path) -> list[str]:
    return [
        sample.key
        for split in read_manifest(out).splits.values()
        for shard in split.shards
        for sample in parse_index((out / shard.index).read_text(), out / shard.index)
    ]
