"""Which pairs of images there are to predict: in files, in folders, in shards. Decodes no image, writes nothing."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dtrain.image_input import read_rgb
from dtrain.inference import Pair
from dtrain.run_folder import RunFolder
from shard_tools.checks import EXTENSIONS
from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError
from shard_tools.index import IndexedSample
from shard_tools.manifest import Shard, open_shards
from shard_tools.samples import read_index, read_tuples

_MOST_NAMED = 5


Inputs = Mapping[str, Any]
"""What tells the images of a pair from others, as JSON."""


@dataclass(frozen=True)
class Listed:
    """A pair that there is, and the name that its files get, which may be in folders, with "/" between them."""

    name: str
    inputs: Inputs


@dataclass(frozen=True)
class ListedPair(Pair):
    """A pair that was read, with its entry in the list."""

    listed: Listed = field(kw_only=True)


@dataclass(frozen=True)
class Unreadable:
    """Pairs, so many, that can't even be read, and why."""

    count: int
    error: UserError


class PairSource(Protocol):
    """Where pairs come from."""

    @property
    def total(self) -> int:
        """How many there are, at least 1."""

    @property
    def folders(self) -> Sequence[Path]:
        """In which any image counts as one of a pair."""

    def listed(self) -> Iterator[Listed]:
        """All of them, always in the same order, without reading any."""

    def read(self, done: Sequence[int]) -> Iterator[ListedPair | Unreadable]:
        """One after the other, but not those whose place in the list is true in `done`."""


class FilePairs:
    """Two image files; or one background for all images of a folder; or two folders with images of equal names."""

    def __init__(self, bg: Path, fgbg: Path, *, skip_unmatched: bool = False) -> None:
        """`notes` is what the user should know of files that are left out.

        Images in folders below are found, too; suffixes need not agree. Raises UserError for what is not there, two
        images of one name, a folder without images, and unless `skip_unmatched` for images without a partner.
        """
        if bg.is_dir() and not fgbg.is_dir():
            raise UserError(
                f"--bg {bg} is a folder, but --fgbg {fgbg} is none; give two files, two folders, or one background for "
                "a folder"
            )
        self.notes: list[str] = []
        self.folders = [folder for folder in (bg, fgbg) if folder.is_dir()]
        self._bg, self._fgbg = bg, fgbg
        self._backgrounds = self._images(bg) if bg.is_dir() else {}
        self._objects = self._images(fgbg) if fgbg.is_dir() else {fgbg.stem: fgbg.suffix}
        self._names = sorted(self._objects)
        if self._backgrounds:
            self._match(skip_unmatched)
        self.total = len(self._names)

    def listed(self) -> Iterator[Listed]:
        for name in self._names:
            bg, fgbg = self._files(name)
            yield Listed(name, {"bg": _identity(bg), "fgbg": _identity(fgbg)})

    def read(self, done: Sequence[int]) -> Iterator[ListedPair]:
        shared = read_rgb(self._bg, "--bg") if self.total > 1 and not self._backgrounds and not all(done) else None
        for place, listed in enumerate(self.listed()):
            if not done[place]:
                bg, fgbg = self._files(listed.name)
                yield ListedPair(listed.name, bg if shared is None else shared, fgbg, listed=listed)

    def _match(self, skip_unmatched: bool) -> None:
        sides = (
            (self._objects, self._fgbg, self._backgrounds, self._bg),
            (self._backgrounds, self._bg, self._objects, self._fgbg),
        )
        alone = [
            f"{len(without):,} of {len(images):,} images in {folder} have no partner in {other} ({_some(without)})"
            for images, folder, others, other in sides
            if (without := sorted(images.keys() - others.keys()))
        ]
        if alone and not skip_unmatched:
            raise UserError(f"{'; '.join(alone)}; give them equal names, or leave them out: --skip-unmatched")
        self.notes += [f"left out: {text}" for text in alone]
        self._names = [name for name in self._names if name in self._backgrounds]
        if not self._names:
            raise UserError(
                f"no image in {self._fgbg} has the name of one in {self._bg}; expected pairs such as 1.jpg and 1.png"
            )

    def _files(self, name: str) -> tuple[Path, Path]:
        bg = self._bg / f"{name}{self._backgrounds[name]}" if self._backgrounds else self._bg
        return bg, self._fgbg / f"{name}{self._objects[name]}" if self._fgbg in self.folders else self._fgbg

    def _images(self, folder: Path) -> dict[str, str]:
        """The images below a folder: their paths in it without suffix, and their suffixes."""
        found: dict[str, str] = {}
        others = 0
        for parent, folders, files in os.walk(folder, onerror=_refuse):
            others += sum(Path(parent, name).is_symlink() for name in folders)
            for file in files:
                path = Path(parent, file).relative_to(folder)
                if path.suffix.lower() not in EXTENSIONS or file.startswith("."):
                    others += 1
                    continue
                name = path.with_suffix("").as_posix()
                if name in found:
                    raise UserError(f"{folder / path} and {name}{found[name]} have one name; rename one of them")
                found[name] = path.suffix
        if others:
            self.notes.append(f"{folder}: not looked at, as no images by name or links to folders: {others:,} files")
        if not found:
            raise UserError(f"{folder}: holds no image; expected files such as 1.jpg")
        return found


class ShardPairs:
    """The tuples of a split of shards, whose truth is known."""

    def __init__(self, location: str, split: str, limit: int | None = None) -> None:
        """The first `limit` tuples in packing order, a random sample of the split. Reads the manifest.

        Raises UserError if it can't, or if there is no such split.
        """
        if limit is not None and limit < 1:
            raise UserError(f"--limit {limit}: expected at least 1")
        self._storage, self._manifest = open_shards(location)
        self._split = split
        self._shards = self._manifest.split(split).shards
        samples = self._manifest.split(split).samples
        if not samples:
            raise UserError(f"{self._storage.location}: split {split!r} has no samples")
        self.total = samples if limit is None else min(samples, limit)
        self.folders: Sequence[Path] = ()
        self._digest = self._manifest.digest()

    def listed(self) -> Iterator[Listed]:
        for shard, samples in self._indexes():
            yield from (self._entry(shard, sample.key) for sample in samples)

    def read(self, done: Sequence[int]) -> Iterator[ListedPair | Unreadable]:
        begin = 0
        for shard, samples in self._indexes():
            wanted = [sample for place, sample in enumerate(samples, start=begin) if not done[place]]
            begin += len(samples)
            count = 0
            try:
                for key, images, _ in read_tuples(self._storage, self._manifest, self._split, shard, wanted):
                    parts = [images[name] for name in COMPONENTS]
                    yield ListedPair(f"{shard.file}: {key}", *parts, listed=self._entry(shard, key))
                    count += 1
            except UserError as error:
                yield Unreadable(len(wanted) - count, error)

    def _entry(self, shard: Shard, key: str) -> Listed:
        # Keys of shards that other programs wrote are unique in a shard only, and may be anything.
        name = f"{Path(shard.file).stem}/{key}" if self._manifest.adopted else key
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise UserError(f"{self._storage.path(shard.file)}: sample {key!r}: can't be the name of a file")
        return Listed(name, {"manifest": self._digest, "shard": shard.file, "key": key})

    def _indexes(self) -> Iterator[tuple[Shard, list[IndexedSample]]]:
        """The shards with those of their samples that are within the limit."""
        left = self.total
        for shard in self._shards:
            if left:
                samples = read_index(self._storage, shard)[:left]
                left -= len(samples)
                yield shard, samples


def find_pairs(
    run: Path,
    *,
    bg: Path | None,
    fgbg: Path | None,
    shards: str | None,
    split: str | None,
    limit: int | None,
    skip_unmatched: bool,
) -> PairSource:
    """What the options of `dtrain predict` name; the default of `split` is the test split of `run`.

    Tells on standard error of files that are left out. Raises UserError as `FilePairs` and `ShardPairs` do, and for
    options that don't go together.
    """
    if shards is not None:
        if bg or fgbg or skip_unmatched:
            raise UserError("--shards: has pairs of its own; leave out --bg, --fgbg and --skip-unmatched")
        return ShardPairs(shards, split or RunFolder(run).load_config().data.test_split, limit)
    if bg is None or fgbg is None:
        raise UserError("expected --bg and --fgbg, two files or folders, or --shards")
    if split is not None or limit is not None:
        raise UserError("--split and --limit: choose among shards; leave them out, or give --shards")
    found = FilePairs(bg, fgbg, skip_unmatched=skip_unmatched)
    for note in found.notes:
        print(f"dtrain: {note}", file=sys.stderr)
    return found


def _identity(path: Path) -> Inputs:
    """Tells a file from another one of its name; that it is missing is found out when it is read."""
    try:
        status = path.stat()
    except OSError:
        return {"file": path.name}
    return {"file": path.name, "bytes": status.st_size, "modified": status.st_mtime_ns}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: can't be read: {error.strerror}")
