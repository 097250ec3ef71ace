"""The nested tree: bg/bgB.jpg and bgB/fg_F/{overlay,depth,mask}/K.jpg. Lists folders; never stats or opens a file."""

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shard_tools.checks import EXTENSIONS, Problem
from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError
from shard_tools.layouts import Findings, Groups, LazyTuples, SourceTuple
from shard_tools.layouts.names import Strays, cannot_list, one_extension, suffix_of, unused_backgrounds

NAME = "nested"
EXPECTED = "a tree with bg/bgB.jpg and bgB/fg_F/{overlay,depth,mask}/K.jpg"

_NUMBER = "([0-9]{1,9})"
_SUFFIX = f"(?ai:{'|'.join(map(re.escape, EXTENSIONS))})"
_IMAGE = re.compile(f"{_NUMBER}{_SUFFIX}")
_BACKGROUND_IMAGE = re.compile(f"bg{_NUMBER}{_SUFFIX}")
_BACKGROUND_FOLDER = re.compile(f"bg{_NUMBER}")
_FOREGROUND_FOLDER = re.compile(f"fg_{_NUMBER}")
_LIKE_BACKGROUND_FOLDER = re.compile("(?i:bg.*[0-9])")
"""What a mistyped name of a background's folder looks like; other folders may lie beside them."""

Names = dict[int, str]


@dataclass(frozen=True, slots=True)
class _Placements:
    """The placements that all three folders of a foreground have, and the file names; shared where they are equal."""

    numbers: tuple[int, ...]
    overlay: tuple[str, ...]
    depth: tuple[str, ...]
    mask: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Foreground:
    """One folder bgB/fg_F that has complete tuples."""

    background: int
    foreground: int
    path: str
    background_file: str
    mask_folder: str
    placements: _Placements


class _Missing(NamedTuple):
    """A file of the tuple `key` that is not there: its path without a suffix, and the folder of its like."""

    key: str
    stem: str
    component: str


def recognise(source: Path) -> str | None:
    """Why `source` looks like this layout: it has folders bgB with folders fg_F in them."""
    try:
        folders = [entry.name for entry in os.scandir(source) if _BACKGROUND_FOLDER.fullmatch(entry.name)]
        for folder in sorted(folders, key=_by_length):
            with os.scandir(source / folder) as entries:
                inside = [entry.name for entry in entries if _FOREGROUND_FOLDER.fullmatch(entry.name)]
            if inside:
                return f"it has folders like {folder}/{min(inside, key=_by_length)}/"
    except OSError:
        pass
    return None


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def scan(source: Path) -> Findings:
    """Find the tuples below `source`, ordered by (background, foreground, placement), each as a number.

    Raises UserError when the folder cannot be listed, holds no such tree, or two names stand for one number.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected {EXPECTED}")
    return _Scan(source).run()


class _Scan:
    def __init__(self, source: Path) -> None:
        self._source = source
        self._foregrounds: list[_Foreground] = []
        self._missing: list[_Missing] = []
        self._suffixes: dict[str, str] = {}
        self._found = 0
        self._shared: dict[_Placements, _Placements] = {}
        self._listed: dict[tuple[re.Pattern[str], frozenset[str]], tuple[Names, list[str]]] = {}
        self._strays = Strays()

    def run(self) -> Findings:
        images = self._numbered("bg", _BACKGROUND_IMAGE, "bg") if "bg" in self._listing("")[0] else {}
        folders = self._numbered_folders("", _BACKGROUND_FOLDER)
        per_background = {
            number: self._scan_background(number, folders[number], images.get(number)) for number in sorted(folders)
        }
        if not self._found:
            raise UserError(f"{self._source}: no tuples found; expected {EXPECTED}")
        unused = sorted(number for number in images if not per_background.get(number))
        tuples = _Tuples(self._foregrounds)
        return Findings(
            layout=NAME,
            root=self._source,
            tuples=tuples,
            backgrounds=tuples.groups([folder.background for folder in self._foregrounds]),
            foregrounds=tuples.groups([folder.foreground for folder in self._foregrounds]),
            splits=None,
            extensions=self._extensions(),
            digest=self._digest(),
            found=self._found,
            problems=tuple(map(self._problem, self._missing)),
            notes=(*unused_backgrounds([images[number] for number in unused]), *self._strays.notes()),
        )

    def _scan_background(self, background: int, folder: str, image: str | None) -> int:
        """Collect the tuples of one background; returns how many are complete."""
        complete = 0
        foregrounds = self._numbered_folders(folder, _FOREGROUND_FOLDER)
        for foreground in sorted(foregrounds):
            path = f"{folder}/{foregrounds[foreground]}"
            mask_folder, listed = self._list_foreground(path)
            numbers = sorted(set().union(*listed))
            self._found += len(numbers)
            whole = numbers
            if image is None or not listed[0].keys() == listed[1].keys() == listed[2].keys():
                folders = ("overlay", "depth", mask_folder)
                for number in numbers:
                    key = f"bg{background}_fg_{foreground}_{number}"
                    if image is None:
                        self._missing.append(_Missing(key, f"bg/bg{background}", "bg"))
                    self._missing += [
                        _Missing(key, f"{path}/{name}/{number}", name.removesuffix("_"))
                        for name, files in zip(folders, listed, strict=True)
                        if number not in files
                    ]
                whole = [number for number in numbers if image and all(number in files for files in listed)]
            if image and whole:
                names = (tuple(files[number] for number in whole) for files in listed)
                placements = _Placements(tuple(whole), *names)
                placements = self._shared.setdefault(placements, placements)
                self._foregrounds.append(
                    _Foreground(background, foreground, path, f"bg/{image}", mask_folder, placements)
                )
                complete += len(whole)
        return complete

    def _list_foreground(self, path: str) -> tuple[str, tuple[Names, Names, Names]]:
        """The name of the mask folder, and the numbered images of overlay, depth and mask."""
        folders, files = self._listing(path)
        for name in files:
            self._strays.add(f"{path}/{name}")
        if {"mask", "mask_"} <= folders:
            raise UserError(f"{self._source / path}: holds both mask and mask_; keep the one that is meant")
        mask_folder = "mask_" if "mask_" in folders else "mask"
        overlay, depth, mask = (
            self._numbered(f"{path}/{name}", _IMAGE, name.removesuffix("_")) if name in folders else {}
            for name in ("overlay", "depth", mask_folder)
        )
        return mask_folder, (overlay, depth, mask)

    def _problem(self, missing: "_Missing") -> Problem:
        """That a file is missing, by the name that one would expect: with the suffix of the first that is there."""
        suffix = self._suffixes.get(missing.component, ".jpg")
        return Problem(missing.key, f"{missing.stem}{suffix}", "missing", "missing")

    def _extensions(self) -> tuple[str, ...]:
        """The extension of each component; UserError where one component comes with several."""
        suffixes: tuple[set[str], ...] = ({suffix_of(folder.background_file) for folder in self._foregrounds},)
        for component in ("overlay", "depth", "mask"):
            suffixes += ({suffix_of(name) for placements in self._shared for name in getattr(placements, component)},)
        return tuple(map(partial(one_extension, self._source), COMPONENTS, suffixes))

    def _digest(self) -> str:
        """SHA-256 of the names of all complete tuples' files; those that many folders share are hashed once."""
        names = {
            id(placements): hashlib.sha256(
                "\0".join(
                    (*map(str, placements.numbers), *placements.overlay, *placements.depth, *placements.mask)
                ).encode("utf-8", "surrogateescape")
            ).digest()
            for placements in self._shared
        }
        digest = hashlib.sha256()
        for folder in self._foregrounds:
            parts = (folder.path, folder.background_file, folder.mask_folder, "")
            digest.update("\0".join(parts).encode("utf-8", "surrogateescape"))
            digest.update(names[id(folder.placements)])
        return digest.hexdigest()

    def _listing(self, path: str) -> tuple[set[str], set[str]]:
        """Names of the folders in `path` (relative to the source), and of what else lies there."""
        folders: set[str] = set()
        others: set[str] = set()
        try:
            with os.scandir(f"{self._source}/{path}") as entries:
                for entry in entries:
                    (folders if entry.is_dir() else others).add(entry.name)
        except OSError as error:
            raise cannot_list(self._source / path, error) from None
        return folders, others

    def _numbered_folders(self, path: str, pattern: re.Pattern[str]) -> Names:
        numbered, strays = self._by_number(path, pattern, self._listing(path)[0])
        for name in strays:
            if path:
                self._strays.add(f"{path}/{name}/")
            elif _LIKE_BACKGROUND_FOLDER.match(name):
                self._strays.add(f"{name}/")
        return numbered

    def _numbered(self, path: str, pattern: re.Pattern[str], component: str) -> Names:
        """File names in `path` that are images and match `pattern`, by number; worked out once for equal lists."""
        try:
            names = frozenset(os.listdir(f"{self._source}/{path}"))  # noqa: PTH208 - a Path for each costs seconds
        except OSError as error:
            raise cannot_list(self._source / path, error) from None
        listed = self._listed.get((pattern, names))
        if listed is None:
            listed = self._listed[pattern, names] = self._by_number(path, pattern, names)
        numbered, strays = listed
        if numbered and component not in self._suffixes:
            self._suffixes[component] = suffix_of(numbered[min(numbered)])
        for name in strays:
            self._strays.add(f"{path}/{name}")
        return numbered

    def _by_number(self, path: str, pattern: re.Pattern[str], names: Iterable[str]) -> tuple[Names, list[str]]:
        """The names that match by their numbers, and those that do not."""
        numbered: Names = {}
        strays = []
        for name in names:
            match = pattern.fullmatch(name)
            if match is None:
                strays.append(name)
                continue
            number = int(match[1])
            if number in numbered:
                pair = " and ".join(sorted((name, numbered[number])))
                raise UserError(f"{self._source / path}: {pair} have the same number; keep one of them")
            numbered[number] = name
        return numbered, strays


class _Tuples(LazyTuples):
    """The complete tuples, made when asked for: a million of them take as little memory as their folders."""

    def __init__(self, foregrounds: Sequence[_Foreground]) -> None:
        self._foregrounds = foregrounds
        self._ends = list(accumulate(len(folder.placements.numbers) for folder in foregrounds))

    def groups(self, numbers: Sequence[int]) -> Groups:
        """The tuples by the number of their folder; `numbers` has one for each folder."""
        known = sorted(set(numbers))
        codes = np.searchsorted(known, numbers).astype(np.int32)
        sizes = [len(folder.placements.numbers) for folder in self._foregrounds]
        return Groups(tuple(map(str, known)), np.repeat(codes, sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def tuple_at(self, index: int) -> SourceTuple:
        at = bisect_right(self._ends, index)
        folder = self._foregrounds[at]
        placements = folder.placements
        i = index - (self._ends[at] - len(placements.numbers))
        number = placements.numbers[i]
        return SourceTuple(
            key=f"bg{folder.background}_fg_{folder.foreground}_{number}",
            files=(
                folder.background_file,
                f"{folder.path}/overlay/{placements.overlay[i]}",
                f"{folder.path}/depth/{placements.depth[i]}",
                f"{folder.path}/{folder.mask_folder}/{placements.mask[i]}",
            ),
            metadata=f'{{"background":{folder.background},"foreground":{folder.foreground},"placement":{number}}}',
            background=f"bg{folder.background}",
        )
