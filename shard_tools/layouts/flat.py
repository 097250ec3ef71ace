"""The flat folders: fgbg_G/bgB_R_C_[flip_]fg_F.jpg, the same below mask_fgbg_G and depth_fgbg_G, and bg150/bgB.jpg.

Lists folders; never stats or opens a file. The folders may tell the size of their images, too: fgbg150_G.
"""

import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shard_tools.checks import EXTENSIONS, Problem
from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError
from shard_tools.layouts import Findings
from shard_tools.layouts.flat_tuples import FlatTuples, GroupFolder
from shard_tools.layouts.names import Strays, cannot_list, one_extension, suffix_of, unused_backgrounds

NAME = "flat"
EXPECTED = "folders fgbg_G, mask_fgbg_G and depth_fgbg_G with files like bgB_R_C_fg_F.jpg, and bg150/bgB.jpg"

_PREFIXES = ("", "depth_", "mask_")
"""Of the folders and files of fgbg, depth and mask."""

_NUMBER = "[0-9]{1,9}"
_SUFFIX = rf"(?ai:{'|'.join(map(re.escape, EXTENSIONS))})"
_GROUP_FOLDER = re.compile(rf"(?:mask_|depth_)?(fgbg([0-9]*)_({_NUMBER}))")
_BACKGROUND_FOLDER = re.compile(r"bg[0-9]*")
_BACKGROUND_IMAGE = re.compile(rf"bg({_NUMBER}){_SUFFIX}")
_STEM = re.compile(rf"bg({_NUMBER})_({_NUMBER})_({_NUMBER})_(flip_)?fg_({_NUMBER})")
_IMAGES = tuple(
    re.compile(rf"{prefix}(bg{_NUMBER}_{_NUMBER}_{_NUMBER}_(?:flip_)?fg_{_NUMBER})({_SUFFIX})") for prefix in _PREFIXES
)


def recognise(source: Path) -> str | None:
    """Why `source` looks like this layout: it has folders fgbg_G."""
    try:
        with os.scandir(source) as entries:
            folders = [entry.name for entry in entries if _GROUP_FOLDER.fullmatch(entry.name) and entry.is_dir()]
    except OSError:
        return None
    return f"it has folders like {min(folders, key=lambda name: (len(name), name))}/" if folders else None


def scan(source: Path) -> Findings:
    """Find the tuples below `source`, ordered by (background, foreground, flip, row, column), each as a number.

    Raises UserError when a folder cannot be listed, none is of this layout, there are several folders of
    backgrounds, two files stand for one image of a tuple, or two tuples have the same numbers.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected {EXPECTED}")
    return _Scan(source).run()


class _Scan:
    def __init__(self, source: Path) -> None:
        self._source = source
        self._strays = Strays()
        self._suffix_names = [""]
        self._stems: list[str] = []
        self._numbers = array("q")
        self._suffixes = array("B")

    def run(self) -> Findings:
        folders = self._folders()
        groups = self._groups(folders)
        for place, group in enumerate(groups):
            self._scan_group(place, group, folders)
        if not self._stems:
            raise UserError(f"{self._source}: no tuples found; expected {EXPECTED}")
        found = self._in_order(groups, *self._backgrounds(folders, {group.size for group in groups}))
        self._refuse_equal_keys(found)
        whole = (found.suffixes > 0).all(axis=1) & np.isin(found.numbers[:, 0], list(found.backgrounds))
        tuples = found.only(whole)
        backgrounds = tuples.group_by(column=0)
        unused = sorted(set(found.backgrounds) - set(map(int, backgrounds.names)))
        return Findings(
            layout=NAME,
            root=self._source,
            tuples=tuples,
            backgrounds=backgrounds,
            foregrounds=tuples.group_by(column=1),
            splits=None,
            extensions=self._extensions(tuples),
            digest=tuples.digest(),
            found=len(found),
            problems=tuple(problem for i in np.flatnonzero(~whole).tolist() for problem in _problems(found, i)),
            notes=(
                *unused_backgrounds([found.backgrounds[number] for number in unused]),
                *self._strays.notes(),
            ),
        )

    def _groups(self, folders: Sequence[str]) -> list[GroupFolder]:
        matches = [(name, _GROUP_FOLDER.fullmatch(name)) for name in folders]
        for name, match in matches:
            if match is None and "fgbg" in name:
                self._strays.add(f"{name}/")
        groups = {GroupFolder(match[1], match[2], int(match[3])) for _, match in matches if match}
        return sorted(groups, key=lambda group: (group.number, group.name))

    def _scan_group(self, place: int, group: GroupFolder, folders: Sequence[str]) -> None:
        images = [
            self._images(f"{prefix}{group.name}", pattern) if f"{prefix}{group.name}" in folders else {}
            for prefix, pattern in zip(_PREFIXES, _IMAGES, strict=True)
        ]
        for stem in set().union(*images):
            [(background, row, column, flip, foreground)] = _STEM.findall(stem)
            self._stems.append(stem)
            self._numbers.extend((int(background), int(foreground), bool(flip), int(row), int(column), place))
            self._suffixes.extend(found.get(stem, 0) for found in images)

    def _images(self, folder: str, pattern: re.Pattern[str]) -> dict[str, int]:
        """The images in `folder`: the place of the suffix by what the name has before it, without the prefix."""
        images: dict[str, int] = {}
        for name in self._files(folder):
            match = pattern.fullmatch(name)
            if match is None:
                self._strays.add(f"{folder}/{name}")
                continue
            stem, suffix = match.groups()
            if suffix not in self._suffix_names:
                self._suffix_names.append(suffix)
            if stem in images:
                pair = f"{name.removesuffix(suffix)}{self._suffix_names[images[stem]]} and {name}"
                raise UserError(f"{self._source / folder}: {pair} stand for one image; keep one of them")
            images[stem] = self._suffix_names.index(suffix)
        return images

    def _backgrounds(self, folders: Sequence[str], sizes: set[str]) -> tuple[str, dict[int, str]]:
        """The folder of the backgrounds and its images by number; of several folders, that of the images' size."""
        names = {folder: self._files(folder) for folder in folders if _BACKGROUND_FOLDER.fullmatch(folder)}
        candidates = [folder for folder in names if any(map(_BACKGROUND_IMAGE.fullmatch, names[folder]))]
        if not candidates:
            return f"bg{min(sizes)}", {}
        of_size = [f"bg{size}" for size in sizes if size and f"bg{size}" in candidates]
        chosen = of_size if len(of_size) == 1 else candidates
        if len(chosen) > 1:
            raise UserError(
                f"{self._source}: {', '.join(sorted(chosen))} hold backgrounds; keep the folder that is meant"
            )
        for folder in candidates:
            if folder not in chosen:
                self._strays.add(f"{folder}/")
        [folder] = chosen
        images: dict[int, str] = {}
        for name in names[folder]:
            match = _BACKGROUND_IMAGE.fullmatch(name)
            if match is None:
                self._strays.add(f"{folder}/{name}")
            elif int(match[1]) in images:
                pair = f"{images[int(match[1])]} and {name}"
                raise UserError(f"{self._source / folder}: {pair} have the same number; keep one of them")
            else:
                images[int(match[1])] = name
        return folder, images

    def _in_order(
        self, groups: Sequence[GroupFolder], background_folder: str, backgrounds: dict[int, str]
    ) -> FlatTuples:
        numbers = np.frombuffer(self._numbers, np.int64).reshape(-1, 6)
        suffixes = np.frombuffer(self._suffixes, np.uint8).reshape(-1, 3)
        order = np.lexsort(numbers[:, ::-1].T)
        return FlatTuples(
            background_folder=background_folder,
            backgrounds=backgrounds,
            groups=groups,
            suffix_names=self._suffix_names,
            stems=[self._stems[i] for i in order.tolist()],
            numbers=numbers[order],
            suffixes=suffixes[order],
        )

    def _refuse_equal_keys(self, found: FlatTuples) -> None:
        for i in np.flatnonzero((found.numbers[1:, :5] == found.numbers[:-1, :5]).all(axis=1)).tolist():
            first, second = sorted(
                next(file for file, place in zip(found.files(j)[1:], found.suffixes[j], strict=True) if place)
                for j in (i, i + 1)
            )
            raise UserError(
                f"{self._source}: two tuples with one key, {found.key(i)}: {first} and {second}; keep one of them"
            )

    def _extensions(self, tuples: FlatTuples) -> tuple[str, ...]:
        """The extension of each component; UserError where one component comes with several."""
        backgrounds = {suffix_of(tuples.backgrounds[number]) for number in np.unique(tuples.numbers[:, 0]).tolist()}
        others = ({self._suffix_names[place] for place in np.unique(column)} for column in tuples.suffixes.T)
        extensions = []
        for component, suffixes in zip(COMPONENTS, (backgrounds, *others), strict=True):
            extensions.append(one_extension(self._source, component, suffixes))
        return tuple(extensions)

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self._source) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise cannot_list(self._source, error) from None

    def _files(self, folder: str) -> list[str]:
        """Names in `folder`, sorted, so that messages are the same each time."""
        try:
            return sorted(os.listdir(self._source / folder))  # noqa: PTH208 - a Path for each costs seconds
        except OSError as error:
            raise cannot_list(self._source / folder, error) from None


def _problems(found: FlatTuples, i: int) -> list[Problem]:
    """What tuple `i` lacks."""
    there = (int(found.numbers[i, 0]) in found.backgrounds, *found.suffixes[i].tolist())
    files = zip(found.files(i), there, strict=True)
    return [Problem(found.key(i), file, "missing", "missing") for file, is_there in files if not is_there]
