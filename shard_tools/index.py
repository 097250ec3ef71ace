"""The index beside a shard, in the text format of NVIDIA DALI's `wds2idx` (v1.2).

First line "v1.2 N"; then per sample one line of "extension offset size name" for each of its members, where offset
is that of the member's first data byte in the tar. Names hold no white space.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

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
