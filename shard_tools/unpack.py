"""`shard-tools unpack`: from shards back to the tree of files that they were built from, byte for byte.

A shard is not trusted: its hash is checked before anything is taken from it, and none of its paths leads out of OUT.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from shard_tools.checks import EXTENSIONS
from shard_tools.components import BACKGROUND
from shard_tools.errors import UserError
from shard_tools.index import IndexedSample
from shard_tools.manifest import Component, Manifest, Shard, open_shards
from shard_tools.metadata import EXTENSION, background_key, parse_metadata, source_files
from shard_tools.progress import progress
from shard_tools.samples import read_index, read_members
from shard_tools.storage import Storage
from shard_tools.unpack_folder import FilledFolder, begin_filling, finish_filling, plain_path
from shard_tools.workers import run_tasks

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")


def unpack(location: str, out: Path, *, split: str | None, workers: int) -> str:
    """Write the files of one split, or of all, to the folder `out`; returns a summary to print.

    `location` is the path or URL of shards.json or of its folder. An image goes where its sample says that it lay in
    the source, with the suffix of what is stored; samples that do not say it become KEY.COMPONENT.EXTENSION and
    KEY.json. Of a shard that another program wrote, the files keep their names, in a folder that is called as the shard
    is. Killed, the same call goes on. Raises UserError for a damaged shard, a path that leads out of `out`, two
    contents for one path, and an `out` that holds anything else; what was written until then stays.
    """
    if _URL.match(str(out)):
        raise UserError(f"{out}: expected a folder on this machine; unpack there, then copy")
    storage, manifest = open_shards(location)
    names = [split] if split is not None else list(manifest.splits)
    tasks = [task for name in names for task in _tasks(storage, manifest, name, out.absolute())]
    resumed = begin_filling(out, {"manifest": manifest.digest(), "split": split})
    done = _Unpacked()
    with progress("unpacking", total=sum(manifest.split(name).samples for name in names), unit="tuples") as shown:
        for unpacked in run_tasks(_unpack_shard, tasks, workers):
            done.add(unpacked)
            shown.advance(unpacked.tuples)
    if missing := sorted(done.used - done.backgrounds):
        split_name, key = missing[0]
        raise UserError(
            f"{storage.location}: {len(missing):,} backgrounds of the tuples are in none of the shards of backgrounds, "
            f"the first {key!r} of split {split_name}; look at it with `shard-tools verify`"
        )
    finish_filling(out)
    return _summary(out, len(tasks), done, resumed=resumed, adopted=manifest.adopted)


@dataclass(frozen=True, slots=True)
class _Task:
    """One shard to unpack. `components` are those whose paths its samples list, whether they lie in it or not."""

    storage: Storage
    split: str
    shard: Shard
    components: tuple[Component, ...]
    holds_backgrounds: bool
    uses_backgrounds: bool
    adopted: bool
    out: Path


@dataclass
class _Unpacked:
    """What came of one or more shards; (split, key) of the shared backgrounds that they hold, and that they use."""

    tuples: int = 0
    written: int = 0
    unnamed: int = 0
    backgrounds: set[tuple[str, str]] = field(default_factory=set)
    used: set[tuple[str, str]] = field(default_factory=set)

    def add(self, other: "_Unpacked") -> None:
        self.tuples += other.tuples
        self.written += other.written
        self.unnamed += other.unnamed
        self.backgrounds |= other.backgrounds
        self.used |= other.used


def _tasks(storage: Storage, manifest: Manifest, name: str, out: Path) -> Iterator[_Task]:
    split = manifest.split(name)
    backgrounds = tuple(component for component in manifest.components if component.name == BACKGROUND)
    for shard in split.shards:
        yield _Task(storage, name, shard, manifest.components, False, bool(split.backgrounds), manifest.adopted, out)
    for shard in split.backgrounds:
        yield _Task(storage, name, shard, backgrounds, True, False, manifest.adopted, out)


def _unpack_shard(task: _Task) -> _Unpacked:
    shard, path = task.shard, task.storage.path(task.shard.file)
    folder = FilledFolder(task.out)
    done = _Unpacked()
    try:
        with task.storage.reading(shard.file) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise UserError(
                    f"{path}: damaged, or another file (its SHA-256 is not the one in the manifest); copy it again, "
                    "then run the same command again"
                )
            for sample in read_index(task.storage, shard):
                try:
                    _unpack_sample(task, file, sample, folder, done)
                except ValueError as error:
                    raise UserError(f"{path}: sample {sample.key!r}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, but the manifest lists it; copy it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return done


def _unpack_sample(task: _Task, file: BinaryIO, sample: IndexedSample, folder: FilledFolder, done: _Unpacked) -> None:
    data = read_members(file, sample, task.shard.file)
    if task.adopted:
        for extension, content in data.items():
            path = plain_path(f"{PurePosixPath(task.shard.file).stem}/{sample.key}.{extension}")
            done.written += folder.write(path, content)
        done.tuples += 1
        return
    metadata = parse_metadata(data.get(EXTENSION, b"{}"))
    paths = _paths(metadata, task.components)
    for extension, content in data.items():
        if extension in paths:
            done.written += folder.write(paths[extension], content)
        elif extension != EXTENSION or not paths:
            done.written += folder.write(plain_path(f"{sample.key}.{extension}"), content)
    done.unnamed += not paths
    if task.holds_backgrounds:
        done.backgrounds.add((task.split, sample.key))
    else:
        done.tuples += 1
    if task.uses_backgrounds:
        done.used.add((task.split, background_key(metadata)))


def _paths(metadata: Mapping[str, Any], components: Sequence[Component]) -> dict[str, PurePosixPath]:
    """Where the images go, by their extension in the shard; empty if the sample does not say it."""
    files = source_files(metadata)
    if files is None:
        return {}
    if len(files) != len(components):
        raise ValueError(f'"files" in its json lists {len(files)} paths; expected {len(components)}')
    return {
        component.member_extension: _with_stored_suffix(plain_path(file), component.extension)
        for component, file in zip(components, files, strict=True)
    }


def _with_stored_suffix(path: PurePosixPath, extension: str) -> PurePosixPath:
    """The path as it is if its suffix means the format that is stored, else with that of the format."""
    return path if EXTENSIONS.get(path.suffix.lower()) == extension else path.with_suffix(f".{extension}")


def _summary(out: Path, shards: int, done: _Unpacked, *, resumed: bool, adopted: bool) -> str:
    rest = "; the others were there from an earlier run" if resumed else ""
    lines = [f"{out}: {done.tuples:,} tuples from {shards:,} shards unpacked, {done.written:,} files written{rest}"]
    if adopted:
        lines.append("note: another program wrote these shards; the files of each are in a folder with its name")
    if done.unnamed:
        lines.append(
            f"note: {done.unnamed:,} samples do not say where their images lay in the source; their files are named "
            "KEY.COMPONENT.EXTENSION and KEY.json"
        )
    return "\n".join(lines)
