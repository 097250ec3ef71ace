"""`shard-tools info` and `ls`: what a finished data set holds, as text. Decodes no image and checks no hash."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from shard_tools.errors import UserError
from shard_tools.index import IndexedSample
from shard_tools.manifest import Manifest, Shard, open_shards
from shard_tools.metadata import EXTENSION, read_metadata
from shard_tools.samples import read_index, read_members
from shard_tools.storage import Storage


def info(location: str) -> str:
    """A summary of the manifest, given its path or URL or that of its folder."""
    storage, manifest = open_shards(location)
    counts, splits = manifest.counts, manifest.splits
    arguments = [f"{name}={_value(value)}" for name, value in manifest.build.items() if value is not None]
    total = [shard for split in splits.values() for shard in split.files]
    lines = [
        f"{storage.location}: {counts.packed:,} tuples in {len(total):,} shards, {_megabytes(total)}",
        f"of {counts.found:,} tuples found, {counts.packed:,} packed and {counts.left_out:,} left out",
        "",
        *_table(
            ("split", "tuples", "shards", "tuples a shard", "size"),
            [
                (name, f"{split.samples:,}", f"{len(split.shards):,}", _range(split.shards), _megabytes(split.shards))
                for name, split in splits.items()
            ],
        ),
        "",
        *_table(
            ("component", "stored as", "mode", "size"),
            [
                (c.name, c.member or c.extension, c.mode, f"{c.size[0]} × {c.size[1]}" if c.size else "several")
                for c in manifest.components
            ],
        ),
        "",
        f"backgrounds: {_backgrounds(manifest)}",
        f"built with: {', '.join(arguments)}",
        f"identity: {manifest.digest()}",
    ]
    return "\n".join(lines)


def ls(location: str, *, split: str | None, long: bool) -> Iterator[str]:
    """A line for each tuple, in packing order: key, split and shard, with tabs between them.

    With `long`, then the bytes of each component in the order of the manifest ("-" where the background is stored
    elsewhere), and the tuple's metadata as JSON in one line. Reads the indexes alone, with `long` the shards too.
    """
    storage, manifest = open_shards(location)
    names = list(manifest.splits) if split is None else [split]
    return _lines(storage, manifest, [(name, shard) for name in names for shard in manifest.split(name).shards], long)


def print_lines(lines: Iterable[str]) -> None:
    """Print to standard output; where its reader stops early, as `head` does, stop too, without an error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        if not isinstance(error, BrokenPipeError):
            raise UserError(f"the output cannot be written: {error.strerror}") from None


def _lines(storage: Storage, manifest: Manifest, shards: Sequence[tuple[str, Shard]], long: bool) -> Iterator[str]:
    for split, shard in shards:
        samples = read_index(storage, shard)
        details = _details(storage, manifest, shard, samples) if long else ("" for _ in samples)
        for sample, detail in zip(samples, details, strict=True):
            yield f"{sample.key}\t{split}\t{shard.file}{detail}"


def _details(storage: Storage, manifest: Manifest, shard: Shard, samples: Sequence[IndexedSample]) -> Iterator[str]:
    path = storage.path(shard.file)
    try:
        with storage.reading(shard.file) as file:
            for sample in samples:
                sizes = {member.extension: str(member.size) for member in sample.members}
                columns = [sizes.get(c.member_extension, "-") for c in manifest.components]
                found = tuple(member for member in sample.members if member.extension == EXTENSION)
                data = read_members(file, sample._replace(members=found), path)[EXTENSION] if found else None
                try:
                    metadata = json.dumps(read_metadata(data, adopted=manifest.adopted), ensure_ascii=False)
                except ValueError as error:
                    raise UserError(f"{path}: sample {sample.key!r}: {error}; look at it with `verify`") from None
                yield "\t".join(["", *columns, metadata])
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such object'}; copy it again") from None


def _backgrounds(manifest: Manifest) -> str:
    shards = [shard for split in manifest.splits.values() for shard in split.backgrounds]
    if not shards:
        return "in each tuple"
    count = sum(shard.samples for shard in shards)
    return f"stored once in each split: {count:,} in {len(shards):,} shards, {_megabytes(shards)}"


def _range(shards: Sequence[Shard]) -> str:
    counts = sorted({shard.samples for shard in shards}) or [0]
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _megabytes(shards: Sequence[Shard]) -> str:
    return f"{sum(shard.bytes for shard in shards) / 1e6:,.1f} MB"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heading, *rows)
    ]
