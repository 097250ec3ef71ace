"""One shard task in, one shard with its index and record out. Knows nothing of other shards or of the manifest."""

import hashlib
import json
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from shard_tools.checks import ImageInfo, Kind, Problem
from shard_tools.errors import UserError
from shard_tools.index import format_sample, join_lines
from shard_tools.layouts import SourceTuple
from shard_tools.manifest import Shard
from shard_tools.records import DIGEST_NAME, ComponentSeen, ShardRecord, record_name, summarize_images
from shard_tools.source_images import (
    BadImageError,
    ImageRules,
    Size,
    SourceFolder,
    SourceImage,
    SourceImages,
    Stamp,
)
from shard_tools.storage import Storage
from shard_tools.tar import TarWriter

OnBad = Literal["fail", "skip"]

SHAPE_TOLERANCE = 0.02
"""By how much width / height may differ between images that are encoded anew at one size: a pixel in fifty."""

PASSING: frozenset[Kind] = frozenset({"unreadable", "changed", "missing"})
"""Problems that may be gone at the next look, though the file is the same."""


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

    `name` is the file name without extension, `plan` the digest of the plan that it is from. Each of `tuples` has one
    file, below `root`, for each of `components`.
    """

    name: str
    plan: str
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
    _refuse_belated(task)
    record = _finished(task)
    if record is not None:
        return Packed(record, kept=True)
    return Packed(_write(task), kept=False)


def _refuse_belated(task: ShardTask) -> None:
    """A cluster may run a task again that it thought lost, when the build is finished and perhaps another has begun."""
    try:
        current = task.out.read(DIGEST_NAME).decode(errors="replace")
    except FileNotFoundError:
        current = ""
    if current != task.plan:
        raise UserError(f"{task.out.location}: {task.name} belongs to a build that is no longer under way here")


class _AbandonedError(Exception):
    """Leaves the writing of a shard that is not to be."""


def _write(task: ShardTask) -> ShardRecord:
    shard_name, index_name = f"{task.name}.tar", f"{task.name}.idx"
    work = _Work(task)
    task.out.remove(record_name(task.name))
    try:
        with task.out.writing(shard_name) as file:
            tar = TarWriter(file)
            lines = list(work.add_all(tar))
            if not lines or (work.problems and task.on_bad == "fail"):
                raise _AbandonedError
            size, digest = tar.finish()
    except _AbandonedError:
        shard = None
    else:
        index = join_lines(lines).encode()
        task.out.write(index_name, index)
        shard = Shard(
            file=shard_name,
            samples=len(lines),
            bytes=size,
            sha256=digest,
            index=index_name,
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
    record = ShardRecord(
        name=task.name,
        plan=task.plan,
        tuples=len(task.tuples),
        shard=shard,
        components=work.components(),
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
        self._images.start_shard()
        self._loaders = [self._images.loader(part.name, part.source_extension) for part in task.components]
        self._shares_backgrounds = any(not part.stored for part in task.components)
        self._keys: list[str] = []
        self._infos: list[tuple[ImageInfo, ...]] = []
        self._agreeing: list[Size] = []
        self.stamps: list[Stamp] = []
        self.backgrounds: dict[str, str] = {}
        self.problems: list[Problem] = []

    def add_all(self, tar: TarWriter) -> Iterator[str]:
        """Append every good tuple to the archive, and yield its line of the index; all are looked at."""
        task = self._task
        stored = [
            (number, f"{part.name}.{part.extension}") for number, part in enumerate(task.components) if part.stored
        ]
        fails = task.on_bad == "fail"
        for item in task.tuples:
            images = self._load(item)
            if images is None or (fails and self.problems):
                continue
            parts = [(extension, images[number].data) for number, extension in stored]
            parts.append(("json", self._metadata(item)))
            self._keys.append(item.key)
            self._infos.append(tuple([image.info for image in images]))
            yield format_sample(item.key, tar.add_sample(item.key, parts))

    def components(self) -> dict[str, ComponentSeen]:
        """What the components of the tuples look like that were added."""
        if not self._infos:
            return {}
        names = [component.name for component in self._task.components]
        columns = zip(*self._infos, strict=True)
        return {name: summarize_images(column, self._keys) for name, column in zip(names, columns, strict=True)}

    def _load(self, item: SourceTuple) -> list[SourceImage] | None:
        """The images of a tuple; None where something is wrong with it."""
        try:
            images = [load(file) for load, file in zip(self._loaders, item.files, strict=True)]
        except BadImageError as first:
            self._note_flaws(item, first)
            return None
        self.stamps += [image.stamp for image in images]
        sizes = [image.native for image in images]
        if sizes != self._agreeing and not self._sizes_agree(item, sizes):
            return None
        self._agreeing = sizes
        self.backgrounds[item.background] = images[0].digest
        return images

    def _note_flaws(self, item: SourceTuple, first: BadImageError) -> None:
        """Find out of each image of a tuple what is wrong with it, after the `first` that was."""
        known = len(self.problems)
        for load, file in zip(self._loaders, item.files, strict=True):
            try:
                self.stamps.append(load(file).stamp)
            except BadImageError as error:
                self.problems.append(Problem(item.key, file, *error.flaw))
                self.stamps.append(self._images.folder.stamp(file))
        if len(self.problems) == known:
            text = f"{first}; but not when it was read again: something changes it"
            self.problems.append(Problem(item.key, ", ".join(item.files), "changed", text))

    def _sizes_agree(self, item: SourceTuple, sizes: Sequence[Size]) -> bool:
        """Whether all are of the size of the background, or of its shape where they are made one size anyway."""
        width, height = sizes[0]
        encoded = self._task.rules.encoding is not None
        for file, size in zip(item.files, sizes, strict=True):
            if encoded and abs(size[0] * height - size[1] * width) <= SHAPE_TOLERANCE * size[0] * height:
                continue
            if size != sizes[0]:
                text = f"{size[0]}×{size[1]} pixels, but its bg has {width}×{height}"
                self.problems.append(Problem(item.key, file, "sizes differ", text))
                return False
        return True

    def _metadata(self, item: SourceTuple) -> bytes:
        """KEY.json: what the layout says, the background where it lies elsewhere, and where the images came from.

        Paths out of the source's root would say where it lay, and lead nowhere on another machine: they stay out.
        """
        background = f',"bg":"{item.background}"' if self._shares_backgrounds else ""
        paths = "/\n".join(("", *item.files, ""))
        files = "" if "\n/" in paths or ("../" in paths and _lead_out(item.files)) else _files_to_json(item.files)
        return f"{item.metadata[:-1]}{background}{files}}}".encode()


def _lead_out(files: tuple[str, ...]) -> bool:
    return any(".." in file.split("/") for file in files)


def _files_to_json(files: tuple[str, ...]) -> str:
    joined = '","'.join(files)
    if joined.isascii() and joined.isprintable() and "\\" not in joined and joined.count('"') == 2 * len(files) - 2:
        return f',"files":["{joined}"]'
    return f',"files":{json.dumps(files, separators=(",", ":"))}'


def _finished(task: ShardTask) -> ShardRecord | None:
    """The record of the task if all that it says is true of the files; None if there is work to do.

    Local shards are hashed. A remote one, which appears only when it is whole, counts by its size.
    """
    try:
        record = ShardRecord.model_validate_json(task.out.read(record_name(task.name)))
        if record.plan != task.plan or any(problem.kind in PASSING for problem in record.problems):
            return None
        if record.problems and task.on_bad == "fail":
            return None
        if record.shard is not None and not _is_whole(task.out, record.shard):
            return None
    except (FileNotFoundError, ValidationError):
        return None
    return record if _digest(_stamps_now(task)) == record.sources else None


def _stamps_now(task: ShardTask) -> list[Stamp]:
    folder = SourceFolder(task.root)
    known: dict[str, Stamp] = {}
    for item in task.tuples:
        for file in item.files:
            if file not in known:
                known[file] = folder.stamp(file)
    return [known[file] for item in task.tuples for file in item.files]


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


def _digest(stamps: list[Stamp]) -> str:
    return hashlib.sha256(array("q", chain.from_iterable(stamps)).tobytes()).hexdigest()


_of_thread = threading.local()


def _images_of(root: Path, rules: ImageRules) -> SourceImages:
    """One for all tasks of a build that this thread does, so that backgrounds stay known from one to the next."""
    try:
        status = root.stat()  # another folder may have taken the name since the last build
    except OSError as error:
        raise UserError(f"{root}: cannot be read: {error.strerror}; SRC has to stay where it is") from None
    source = (root, status.st_dev, status.st_ino, rules)
    if getattr(_of_thread, "source", None) != source:
        _of_thread.source, _of_thread.images = source, SourceImages(root, rules)
    images: SourceImages = _of_thread.images
    return images
