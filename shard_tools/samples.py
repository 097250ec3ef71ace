"""Read the samples of finished shards, one after the other or one by its place. Never decodes an image."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from shard_tools.errors import UserError
from shard_tools.index import IndexedSample, parse_index
from shard_tools.manifest import Manifest, Shard
from shard_tools.metadata import EXTENSION, read_metadata
from shard_tools.storage import Storage

BACKGROUND_BYTES = 64 * 2**20
"""How many bytes of backgrounds that are stored once a process keeps."""


class Sample(NamedTuple):
    """A tuple as it lies in a shard: the bytes of each component by its name, and the object in its KEY.json."""

    key: str
    images: dict[str, bytes]
    metadata: dict[str, Any]


class BackgroundLibrary:
    """The backgrounds of a split that are stored once: where each lies, and the bytes of those that were read last."""

    def __init__(self, storage: Storage, shards: Sequence[Shard], extension: str) -> None:
        self._storage = storage
        self._places: dict[str, tuple[Shard, int, int]] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        for shard in shards:
            for sample in read_index(storage, shard):
                for member in sample.members:
                    if member.extension == extension:
                        self._places[sample.key] = (shard, member.offset, member.size)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def read(self, key: str) -> bytes:
        """The bytes of the background `key`. Raises UserError if there is none."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._places:
            raise UserError(f"{self._storage.location}: no background {key!r} in the shards of backgrounds")
        shard, offset, size = self._places[key]
        data = self._storage.read_range(shard.file, offset, size)
        if len(data) != size:
            raise UserError(f"{self._storage.path(shard.file)}: ends inside background {key!r}; copy it again")
        self._kept[key] = data
        self._bytes += len(data)
        while self._bytes > BACKGROUND_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)
        return data


@lru_cache(maxsize=2)
def _library(storage: Storage, shards: tuple[Shard, ...], extension: str) -> BackgroundLibrary:
    """One for all shards of a split that this process reads."""
    return BackgroundLibrary(storage, shards, extension)


def read_index(storage: Storage, shard: Shard) -> list[IndexedSample]:
    """The index of a shard. Raises UserError that names it when it is missing or not the one of the manifest."""
    path = storage.path(shard.index)
    samples = parse_index(decode_index(read_index_bytes(storage, shard), path), path)
    if len(samples) != shard.samples:
        raise UserError(f"{path}: {len(samples)} samples, but the manifest says {shard.samples}; build again")
    for sample in samples:
        if any(member.offset + member.size > shard.bytes for member in sample.members):
            raise UserError(f"{path}: sample {sample.key!r} lies beyond the end of {shard.file}; build again")
    return samples


def read_index_bytes(storage: Storage, shard: Shard) -> bytes:
    """The index of a shard, which has the hash of the manifest. Raises UserError as `read_index` does."""
    path = storage.path(shard.index)
    try:
        data = storage.read(shard.index)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such object'}; copy it again") from None
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise UserError(f"{path}: is not the index that the manifest names (SHA-256 differs); copy it again")
    return data


def decode_index(data: bytes, path: str) -> str:
    """The text of an index; UserError if it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text; build the shards again") from None


def read_tuples(
    storage: Storage,
    manifest: Manifest,
    split: str,
    shard: Shard,
    chosen: Sequence[IndexedSample] | None = None,
) -> Iterator[Sample]:
    """The tuples of one shard of tuples, all in its order or those of its index that are `chosen`.

    Each has all components, wherever its background is stored. Raises UserError that names the shard, and the sample
    where it is one.
    """
    extensions = {component.name: component.member_extension for component in manifest.components}
    backgrounds = manifest.split(split).backgrounds
    path = storage.path(shard.file)
    try:
        library = _library(storage, backgrounds, extensions["bg"]) if backgrounds else None
        with storage.reading(shard.file) as file:
            for sample in read_index(storage, shard) if chosen is None else chosen:
                members = read_members(file, sample, path)
                try:
                    metadata = read_metadata(members.get(EXTENSION), adopted=manifest.adopted)
                except ValueError as error:
                    raise UserError(f"{path}: sample {sample.key!r}: {error}; build the shards again") from None
                images = {name: members[ext] for name, ext in extensions.items() if ext in members}
                if library is not None:
                    images["bg"] = library.read(str(metadata.get("bg")))
                if len(images) != len(extensions):
                    missing = ", ".join(name for name in extensions if name not in images)
                    raise UserError(f"{path}: sample {sample.key!r} has no {missing}; build the shards again")
                yield Sample(sample.key, images, metadata)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such object'}; copy it again") from None


def read_members(file: BinaryIO, sample: IndexedSample, path: str) -> dict[str, bytes]:
    """The bytes of all members of a sample by their extension; one read, as they lie side by side.

    `path` is for messages. Raises UserError where the file ends before them.
    """
    start = min(member.offset for member in sample.members)
    stop = max(member.offset + member.size for member in sample.members)
    data = _read_at(file, start, stop - start, path, sample.key)
    return {
        member.extension: data[member.offset - start : member.offset - start + member.size] for member in sample.members
    }


def _read_at(file: BinaryIO, offset: int, size: int, path: str, key: str) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise UserError(f"{path}: ends inside sample {key!r}; copy it again, or build the shards again")
    return data
