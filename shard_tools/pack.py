"""One shard task in, one shard with its index and record out. Knows nothing of other shards or of the manifest."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shard_tools.atomic import atomic_file, write_atomically
from shard_tools.checks import ImageInfo, Problem, inspect_image
from shard_tools.index import IndexedSample, Member, format_index
from shard_tools.layouts import COMPONENTS, SourceTuple
from shard_tools.manifest import Shard
from shard_tools.tar import TarWriter

OnBad = Literal["fail", "skip"]

BACKGROUND_CACHE_BYTES = 64 * 2**20
_READ_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a worker needs to write one shard.

    `name` is the file name without extension; files go to `out`, the record to `records`.
    """

    name: str
    source: Path
    out: Path
    records: Path
    tuples: tuple[SourceTuple, ...]
    extensions: tuple[str, ...]
    on_bad: OnBad


class ComponentSeen(BaseModel):
    """Colour modes of one component in one or more shards; (width, height) where all agree, else null."""

    model_config = ConfigDict(frozen=True)

    modes: tuple[str, ...]
    size: tuple[int, int] | None


class ShardRecord(BaseModel):
    """What came of a task: the shard, or none where no tuple was fit to be packed."""

    model_config = ConfigDict(frozen=True)

    name: str
    tuples: int = Field(gt=0)
    shard: Shard | None
    components: dict[str, ComponentSeen]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """A record, and whether its shard was there already."""

    record: ShardRecord
    kept: bool


def pack_shard(task: ShardTask) -> Packed:
    """Write the shard, then its index, then its record; or keep all three where they are whole.

    Image bytes are copied unchanged. A tuple with a problem is left out whole; with on_bad "fail" the rest of the
    shard is still looked through, but nothing is written. Raises OSError where the output cannot be written.
    """
    record = _finished(task)
    if record is not None:
        return Packed(record, kept=True)
    return Packed(_write(task), kept=False)


def merge_components(records: Iterable[ShardRecord]) -> dict[str, ComponentSeen]:
    """What the components look like over several shards."""
    seen = [record.components for record in records if record.components]
    merged = {}
    for component in COMPONENTS:
        modes = {mode for components in seen for mode in components[component].modes}
        sizes = {components[component].size for components in seen}
        merged[component] = ComponentSeen(modes=tuple(sorted(modes)), size=sizes.pop() if len(sizes) == 1 else None)
    return merged


class _AbandonedError(Exception):
    """Leaves the writing of a shard that is not to be."""


def _write(task: ShardTask) -> ShardRecord:
    shard_path, index_path = (task.out / f"{task.name}.{extension}" for extension in ("tar", "idx"))
    problems: list[Problem] = []
    samples: list[IndexedSample] = []
    seen: tuple[set[ImageInfo], ...] = tuple(set() for _ in COMPONENTS)
    suffixes = [f"{component}.{extension}" for component, extension in zip(COMPONENTS, task.extensions, strict=True)]
    try:
        with atomic_file(shard_path) as file:
            tar = TarWriter(file)
            for item in task.tuples:
                images, bad = _load(task, item)
                problems += bad
                if bad or (problems and task.on_bad == "fail"):
                    continue
                members = []
                for suffix, (data, info), infos in zip(suffixes, images, seen, strict=True):
                    members.append(Member(suffix, tar.add(f"{item.key}.{suffix}", data), len(data)))
                    infos.add(info)
                metadata = item.metadata.encode()
                members.append(Member("json", tar.add(f"{item.key}.json", metadata), len(metadata)))
                samples.append(IndexedSample(item.key, tuple(members)))
            if not samples or (problems and task.on_bad == "fail"):
                raise _AbandonedError
            size, digest = tar.finish()
    except _AbandonedError:
        shard_path.unlink(missing_ok=True)
        index_path.unlink(missing_ok=True)
        record = ShardRecord(
            name=task.name, tuples=len(task.tuples), shard=None, components={}, problems=tuple(problems)
        )
    else:
        index = format_index(samples).encode()
        write_atomically(index_path, index)
        record = ShardRecord(
            name=task.name,
            tuples=len(task.tuples),
            shard=Shard(
                file=shard_path.name,
                samples=len(samples),
                bytes=size,
                sha256=digest,
                index=index_path.name,
                index_sha256=hashlib.sha256(index).hexdigest(),
            ),
            components={component: _summarize(infos) for component, infos in zip(COMPONENTS, seen, strict=True)},
            problems=tuple(problems),
        )
    if record.shard is not None or task.on_bad == "skip":
        write_atomically(_record_path(task), record.model_dump_json())
    return record


def _summarize(infos: set[ImageInfo]) -> ComponentSeen:
    sizes = {(info.width, info.height) for info in infos}
    return ComponentSeen(
        modes=tuple(sorted({info.mode for info in infos})), size=sizes.pop() if len(sizes) == 1 else None
    )


def _record_path(task: ShardTask) -> Path:
    return task.records / f"{task.name}.json"


def _finished(task: ShardTask) -> ShardRecord | None:
    """The record of the task if all that it says is true of the files; None if there is work to do."""
    try:
        record = ShardRecord.model_validate_json(_record_path(task).read_bytes())
        if record.problems and task.on_bad == "fail":
            return None
        if record.shard is not None:
            for name, expected in (
                (record.shard.file, record.shard.sha256),
                (record.shard.index, record.shard.index_sha256),
            ):
                with (task.out / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                        return None
    except (FileNotFoundError, ValidationError):
        return None
    return record


Loaded = tuple[bytes, ImageInfo]


def _load(task: ShardTask, item: SourceTuple) -> tuple[list[Loaded], list[Problem]]:
    """The images of a tuple in the order of COMPONENTS, or what is wrong with them."""
    source = os.fspath(task.source)
    images: list[Loaded] = []
    problems: list[Problem] = []
    for i, (file, extension) in enumerate(zip(item.files, task.extensions, strict=True)):
        load = _load_image if i else _load_background
        loaded = load(f"{source}/{file}", extension)
        if isinstance(loaded, str):
            problems.append(Problem(item.key, file, loaded))
        else:
            images.append(loaded)
    if not problems:
        background = images[0][1]
        for file, (_, info) in zip(item.files, images, strict=True):
            if info.width != background.width or info.height != background.height:
                expected = f"{background.width}×{background.height}"
                problems.append(
                    Problem(item.key, file, f"{info.width}×{info.height} pixels, but its bg has {expected}")
                )
    return images, problems


def _load_image(path: str, extension: str) -> Loaded | str:
    """The bytes and the header of one image, or what is wrong with it."""
    try:
        data = _read(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    info = inspect_image(data, extension)
    return info if isinstance(info, str) else (data, info)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(descriptor, _READ_BYTES)]
        while parts[-1]:
            parts.append(os.read(descriptor, _READ_BYTES))
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 2 else b"".join(parts)


class _ImageCache:
    """The images read last, up to a number of bytes; one that changes on disk is read again."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._images: OrderedDict[tuple[str, int, int], Loaded] = OrderedDict()

    def load(self, path: str, extension: str) -> Loaded | str:
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path for each of a million tuples costs seconds
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        identity = (path, status.st_mtime_ns, status.st_size)
        loaded = self._images.get(identity)
        if loaded is not None:
            self._images.move_to_end(identity)
            return loaded
        fresh = _load_image(path, extension)
        if not isinstance(fresh, str):
            self._images[identity] = fresh
            self._bytes += len(fresh[0])
            while self._bytes > self._max_bytes:
                _, (data, _) = self._images.popitem(last=False)
                self._bytes -= len(data)
        return fresh


_load_background = _ImageCache(BACKGROUND_CACHE_BYTES).load
