"""The index beside a shard, in the text format of NVIDIA DALI's `wds2idx` (v1.2).

First line "v1.2 N"; then per sample one line of "extension offset size name" for each of its members, where offset
is that of the member's first data byte in the tar. Names hold no white space.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shard_tools.errors import UserError

INDEX_VERSION = "v1.2"


class Member(NamedTuple):
    """A file inside a shard: where its bytes begin and how many there are."""

    extension: str
    offset: int
    size: int


class IndexedSample(NamedTuple):
    """One sample: its key and its members in the order of the tar."""

    key: str
    members: tuple[Member, ...]


def format_index(samples: Iterable[IndexedSample]) -> str:
    """The text of an index file."""
    return join_lines([format_sample(sample.key, sample.members) for sample in samples])


def format_sample(key: str, members: Iterable[tuple[str, int, int]]) -> str:
    """The line of one sample; `members` are (extension, offset, size)."""
    return " ".join([f"{extension} {offset} {size} {key}.{extension}" for extension, offset, size in members])


def join_lines(lines: Sequence[str]) -> str:
    """The text of an index file from the lines of its samples."""
    return "\n".join((f"{INDEX_VERSION} {len(lines)}", *lines, ""))


def parse_index(text: str, path: Path | str) -> list[IndexedSample]:
    """Read the text of an index file; `path` is for messages. Raises UserError with the line that is wrong."""
    lines = text.splitlines()
    header = lines[0].split() if lines else []
    if len(header) != 2 or header[0] not in ("v1.1", "v1.2") or not header[1].isdigit():
        raise UserError(f"{path}: first line should be '{INDEX_VERSION} COUNT'; build the shards again")
    if int(header[1]) != len(lines) - 1:
        raise UserError(f"{path}: says {header[1]} samples but lists {len(lines) - 1}; build the shards again")
    width = 4 if header[0] == "v1.2" else 3
    samples = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split(" ")
        try:
            if len(fields) % width:
                raise ValueError
            members = tuple(
                Member(fields[i], int(fields[i + 1]), int(fields[i + 2])) for i in range(0, len(fields), width)
            )
            if any(member.offset < 0 or member.size < 0 for member in members):
                raise ValueError
        except ValueError:
            raise UserError(f"{path}: line {number} is not 'extension offset size name …'") from None
        key = fields[3].removesuffix("." + fields[0]) if width == 4 else f"{Path(path).stem}-{number - 2:06d}"
        samples.append(IndexedSample(key, members))
    return samples


class Places(NamedTuple):
    """Where some members of all samples of a shard lie: keys (n), offsets and sizes in bytes (n, members)."""

    keys: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def find_members(text: str, extensions: Sequence[str], path: Path | str) -> Places:
    """The places of the members with `extensions`, in their order, of all samples of an index.

    As `parse_index`, but several times faster where all samples have the same members. Raises UserError as it does,
    and for a sample that lacks one of them.
    """
    return _find_in_columns(text, extensions) or _find_in_samples(parse_index(text, path), extensions, path)


def _find_in_columns(text: str, extensions: Sequence[str]) -> Places | None:
    """None unless every line is of the same form, and what it should be."""
    first, _, rest = text.partition("\n")
    line, _, _ = rest.partition("\n")
    fields, width = rest.split(), len(line.split(" "))
    count = len(fields) // width if width else 0
    if first != f"{INDEX_VERSION} {count}" or rest.count("\n") != count or width % 4 or count * width != len(fields):
        return None
    columns = {fields[column]: column for column in range(0, width, 4)}
    if not columns.keys() >= set(extensions) or any(
        fields[column::width].count(extension) != count for extension, column in columns.items()
    ):
        return None
    offsets, sizes = np.empty((2, count, len(extensions)), dtype=np.int64)
    try:
        for number, extension in enumerate(extensions):
            offsets[:, number] = list(map(int, fields[columns[extension] + 1 :: width]))
            sizes[:, number] = list(map(int, fields[columns[extension] + 2 :: width]))
    except (ValueError, OverflowError):
        return None
    if offsets.min(initial=0) < 0 or sizes.min(initial=0) < 0:
        return None
    ending = "." + fields[0]
    return Places([name.removesuffix(ending) for name in fields[3::width]], offsets, sizes)


def _find_in_samples(samples: Sequence[IndexedSample], extensions: Sequence[str], path: Path | str) -> Places:
    offsets, sizes = np.empty((2, len(samples), len(extensions)), dtype=np.int64)
    for number, sample in enumerate(samples):
        members = {member.extension: member for member in sample.members}
        for column, extension in enumerate(extensions):
            if extension not in members:
                raise UserError(f"{path}: sample {sample.key!r} has no member {extension!r}; build the shards again")
            try:
                offsets[number, column], sizes[number, column] = members[extension][1:]
            except OverflowError:
                raise UserError(
                    f"{path}: sample {sample.key!r} lies beyond the end of its shard; build the shards again"
                ) from None
    return Places([sample.key for sample in samples], offsets, sizes)
