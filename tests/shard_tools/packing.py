"""Packing in a test's own process, and looking at what came of it."""

from functools import partial
from pathlib import Path
from typing import Any

from shard_tools.build import Part, build
from shard_tools.build_plan import BuildOptions
from shard_tools.index import parse_index
from shard_tools.manifest import read_manifest
from shard_tools.split import SplitRule
from shard_tools.workers import run_tasks

Content = dict[str, bytes]

SPLIT_OPTIONS = ("by", "train", "test", "test_share", "hold_out")


def pack(source: Path, out: Path | str, *, part: Part | None = None, **options: Any) -> str:
    """Build with the given options, of the split or of the rest, on one worker and with small shards."""
    rule = SplitRule(**{name: options.pop(name) for name in SPLIT_OPTIONS if name in options})
    if not options.keys() & {"shard_size", "shard_bytes"}:
        options["shard_size"] = 7
    return build(source, out, BuildOptions(split=rule, **options), partial(run_tasks, workers=1), part)


def content(folder: Path) -> Content:
    """All files below `folder` by their relative names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def keys(out: Path) -> list[str]:
    """Of all tuples, in packing order."""
    return [
        sample.key
        for split in read_manifest(out).splits.values()
        for shard in split.shards
        for sample in parse_index((out / shard.index).read_text(), out / shard.index)
    ]
