"""`shard-tools stats`: read every shard once, in several processes; write stats.json and stats.png."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from shard_tools.components import COMPONENTS
from shard_tools.decoded import decode_component
from shard_tools.errors import UserError
from shard_tools.manifest import Manifest, Shard, open_shards
from shard_tools.output import prepare_folder, write_output
from shard_tools.progress import progress
from shard_tools.samples import Sample, read_tuples
from shard_tools.stats import ImageCounts, SplitSums, count_image
from shard_tools.stats_table import format_table
from shard_tools.storage import Storage
from shard_tools.workers import run_tasks

MAX_KNOWN_BACKGROUNDS = 4096
"""Backgrounds whose counts (6 KiB each) are kept, so that one that comes again is not decoded again."""


def stats(location: str, *, split: str | None, out: Path, workers: int) -> str:
    """Measure the shards at `location`, all splits or the one called `split`; returns a table to print.

    Writes `out`/stats.json and `out`/stats.png, whole. Raises UserError for shards that are missing or damaged, for a
    split that there is not, and for a folder `out` that cannot be written.
    """
    storage, manifest = open_shards(location)
    names = list(manifest.splits) if split is None else [split]
    tasks = [
        _Task(storage, _alone(manifest, name, shard), name, shard)
        for name in names
        for shard in manifest.split(name).shards
    ]
    if not tasks:
        raise UserError(f"{storage.location}: no tuples in {', '.join(names) or 'any split'}; nothing to measure")
    prepare_folder(out)
    sums = {name: SplitSums() for name in names}
    with progress("stats", total=sum(task.shard.samples for task in tasks), unit="tuples") as shown:
        for name, part in run_tasks(_measure, tasks, min(workers, len(tasks))):
            sums[name].merge(part)
            shown.advance(part.tuples)
    return "\n\n".join(
        [*(format_table(name, part) for name, part in sums.items()), _write(out, manifest, sums, storage)]
    )


class _Task(NamedTuple):
    storage: Storage
    manifest: Manifest
    split: str
    shard: Shard


def _alone(manifest: Manifest, split: str, shard: Shard) -> Manifest:
    """The manifest without the other shards of tuples: all that a task needs of it, and quickly sent."""
    only = manifest.splits[split].model_copy(update={"samples": shard.samples, "shards": (shard,)})
    return manifest.model_copy(update={"splits": {split: only}})


def _measure(task: _Task) -> tuple[str, SplitSums]:
    """The sums over one shard, with the name of its split."""
    path = task.storage.path(task.shard.file)
    sums = SplitSums()
    backgrounds: dict[bytes, ImageCounts] = {}
    for sample in read_tuples(task.storage, task.manifest, task.split, task.shard):
        background = hashlib.sha256(sample.images["bg"]).digest()
        if background not in backgrounds:
            if len(backgrounds) == MAX_KNOWN_BACKGROUNDS:
                backgrounds.clear()
            backgrounds[background] = _count(sample, "bg", path)
        rest = {name: _count(sample, name, path) for name in COMPONENTS if name != "bg"}
        sums.add({"bg": backgrounds[background], **rest})
    return task.split, sums


def _count(sample: Sample, component: str, path: str) -> ImageCounts:
    data = sample.images[component]
    return count_image(len(data), decode_component(data, component, path=path, key=sample.key))


def _write(out: Path, manifest: Manifest, sums: dict[str, SplitSums], storage: Storage) -> str:
    from shard_tools.stats_picture import draw_stats  # matplotlib: late, and in no worker process

    content = {"manifest": manifest.digest(), "splits": {name: part.as_json() for name, part in sums.items()}}
    title = f"Statistics of {Path(storage.location).resolve().name}"
    picture = draw_stats(title, {name: part for name, part in sums.items() if part.tuples})
    write_output(out / "stats.json", json.dumps(content, indent=1) + "\n")
    write_output(out / "stats.png", picture)
    return f"wrote {out / 'stats.json'} and {out / 'stats.png'}"
