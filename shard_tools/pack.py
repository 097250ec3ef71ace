"""One shard task in, one shard with its index and record out. Knows nothing of other shards or of the manifest."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from shard_tools.checks import Flaw, ImageInfo, Problem
from shard_tools.index import IndexedSample, Member, format_index
from shard_tools.layouts import SourceTuple
from shard_tools.manifest import Shard
from shard_tools.records import ModeSeen, ShardRecord, summarize_images
from shard_tools.source_images import ImageRules, SourceImage, SourceImages, path_of, stamp_of
from shard_tools.storage import Storage
from shard_tools.tar import TarWriter

OnBad = Literal["fail", "skip"]

RECORDS = ".build/records"


@dataclass(frozen=True, slots=True)
class StoredComponent:
    """One image of each tuple: its name, the extension that its files have and the one that it has in the shard.

    One that is not `stored` is read and checked, but does not go into this shard.
    """

    name: str
    source_extension: str
    extension: str
    stored: bool = True


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a worker needs to write one shard, on this machine or another.

    `name` is the file name without extension. Each of `tuples` has one file, below `root`, for each of `components`.
    """

    name: str
    root: Path
    out: Storage
    tuples: tuple[SourceTuple, ...]
    components: tuple[StoredComponent, ...]
    rules: ImageRules
    on_bad: OnBad


@dataclass(frozen=True, slots=True)
class Packed:
    """A record, and whether its shard was there already."""

    record: ShardRecord
    kept: bool


def pack_shard(task: ShardTask) -> Packed:
    """Write the shard, then its index, then its record; or keep all three where they are whole.

    A tuple with a problem is left out whole; with on_bad "fail" the rest of the shard is still looked through, but
    nothing is written. Raises OSError or UserError where the output cannot be written.
    """
    record = _finished(task)
    if record is not None:
        return Packed(record, kept=True)
    return Packed(_write(task), kept=False)


def record_name(shard: str) -> str:
    """Where the record of a shard lies."""
    return f"{RECORDS}/{shard}.json"


class _AbandonedError(Exception):
    """Leaves the writing of a shard that is not to be."""


def _write(task: ShardTask) -> ShardRecord:
    shard_name, index_name = f"{task.name}.tar", f"{task.name}.idx"
    work = _Work(task)
    try:
        with task.out.writing(shard_name) as file:
            tar = TarWriter(file)
            samples = list(work.add_all(tar))
            if not samples or (work.problems and task.on_bad == "fail"):
                raise _AbandonedError
            size, digest = tar.finish()
    except _AbandonedError:
        task.out.remove(shard_name)
        task.out.remove(index_name)
        shard = None
    else:
        index = format_index(samples).encode()
        task.out.write(index_name, index)
        shard = Shard(
            file=shard_name,
            samples=len(samples),
            bytes=size,
            sha256=digest,
            index=index_name,
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
    record = ShardRecord(
        name=task.name,
        tuples=len(task.tuples),
        shard=shard,
        components={name: summarize_images(seen) for name, seen in work.seen.items() if seen},
        sources=_digest(work.stamps),
        backgrounds=work.backgrounds,
        problems=tuple(work.problems),
    )
    if shard is not None or task.on_bad == "skip":
        task.out.write(record_name(task.name), record.model_dump_json())
    return record


class _Work:
    """What is gathered while the tuples of a task go into their shard."""

    def __init__(self, task: ShardTask) -> None:
        self._task = task
        self._images = _images_of(task.root, task.rules)
        self._images.forget_changed()
        self._shares_backgrounds = any(not component.stored for component in task.components)
        self.seen: dict[str, dict[ImageInfo, ModeSeen]] = {component.name: {} for component in task.components}
        self.stamps: list[tuple[int, int] | None] = []
        self.backgrounds: dict[str, str] = {}
        self.problems: list[Problem] = []

    def add_all(self, tar: TarWriter) -> Iterator[IndexedSample]:
        """Append every good tuple to the archive; all are looked at."""
        task, stamps = self._task, self.stamps
        root = str(task.root)
        components = [(c.name, c.source_extension, f"{c.name}.{c.extension}", c.stored) for c in task.components]
        counts: list[dict[ImageInfo, int]] = [{} for _ in components]
        first: list[dict[ImageInfo, str]] = [{} for _ in components]
        load = self._images.load
        fails = task.on_bad == "fail"
        for item in task.tuples:
            images: list[SourceImage] = []
            for (name, extension, _, _), file in zip(components, item.files, strict=True):
                image = load(file, name, extension)
                if isinstance(image, Flaw):
                    self.problems.append(Problem(item.key, file, *image))
                    stamps.append(stamp_of(path_of(root, file)))
                else:
                    images.append(image)
                    stamps.append(image.stamp)
            if len(images) < len(components) or not self._sizes_agree(item, images):
                continue
            self.backgrounds[item.background] = images[0].digest
            if fails and self.problems:
                continue
            members = []
            key = item.key
            for number, image in enumerate(images):
                _, _, suffix, stored = components[number]
                info = image.info
                counts[number][info] = counts[number].get(info, 0) + 1
                first[number].setdefault(info, key)
                if stored:
                    members.append(Member(suffix, tar.add(f"{key}.{suffix}", image.data), len(image.data)))
            metadata = self._metadata(item)
            members.append(Member("json", tar.add(f"{key}.json", metadata), len(metadata)))
            yield IndexedSample(key, tuple(members))
        for number, (name, _, _, _) in enumerate(components):
            self.seen[name] = {
                info: ModeSeen(images=count, first=first[number][info]) for info, count in counts[number].items()
            }

    def _sizes_agree(self, item: SourceTuple, images: list[SourceImage]) -> bool:
        background = images[0].info
        agree = True
        for file, image in zip(item.files, images, strict=True):
            info = image.info
            if info.width != background.width or info.height != background.height:
                text = f"{info.width}×{info.height} pixels, but its bg has {background.width}×{background.height}"
                self.problems.append(Problem(item.key, file, "sizes differ", text))
                agree = False
        return agree

    def _metadata(self, item: SourceTuple) -> bytes:
        """KEY.json: what the layout says, the background where it lies elsewhere, and where the images came from.

        Paths out of the source's root would say where it lay, and lead nowhere on another machine: they stay out.
        """
        background = f',"bg":"{item.background}"' if self._shares_backgrounds else ""
        inside = all(file[0] != "/" and ".." not in file for file in item.files)
        files = f',"files":{json.dumps(item.files)}' if inside else ""
        return f"{item.metadata[:-1]}{background}{files}}}".encode()


def _finished(task: ShardTask) -> ShardRecord | None:
    """The record of the task if all that it says is true of the files; None if there is work to do.

    Local shards are hashed. A remote one, which appears only when it is whole, counts by its size.
    """
    try:
        record = ShardRecord.model_validate_json(task.out.read(record_name(task.name)))
        if record.problems and task.on_bad == "fail":
            return None
        if record.shard is not None and not _is_whole(task.out, record.shard):
            return None
    except (FileNotFoundError, ValidationError):
        return None
    root = str(task.root)
    stamps: dict[str, tuple[int, int] | None] = {}
    for item in task.tuples:
        for file in item.files:
            if file not in stamps:
                stamps[file] = stamp_of(path_of(root, file))
    if _digest([stamps[file] for item in task.tuples for file in item.files]) != record.sources:
        return None
    return record


def _is_whole(out: Storage, shard: Shard) -> bool:
    if out.size(shard.file) != shard.bytes:
        return False
    files = [(shard.index, shard.index_sha256)]
    if out.is_local:
        files.append((shard.file, shard.sha256))
    for name, expected in files:
        with out.reading(name) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return False
    return True


def _digest(stamps: list[tuple[int, int] | None]) -> str:
    return hashlib.sha256(repr(stamps).encode()).hexdigest()


_of_thread = threading.local()


def _images_of(root: Path, rules: ImageRules) -> SourceImages:
    """One for all tasks of a build that this thread does, so that backgrounds stay known from one to the next."""
    if getattr(_of_thread, "source", None) != (root, rules):
        _of_thread.source = (root, rules)
        _of_thread.images = SourceImages(str(root), rules)
    images: SourceImages = _of_thread.images
    return images
