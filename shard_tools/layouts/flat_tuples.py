"""Tuples of the flat layout as columns of numbers, and the names of their files. Knows no folder; lists nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shard_tools.layouts import Groups, LazyTuples, SourceTuple


class GroupFolder(NamedTuple):
    """The folders of one G: `name` is that of the overlays' folder, `size` what it says of the images' size or ""."""

    name: str
    size: str
    number: int


@dataclass(frozen=True)
class FlatTuples(LazyTuples):
    """Tuples that are made when asked for.

    `stems` holds what the names of a tuple's files have in common. Of `numbers`, int64 (tuples, 6), the columns are
    background, foreground, flip, row, column and the place in `groups`; of `suffixes`, uint8 (tuples, 3), the places
    of those of fgbg, depth and mask in `suffix_names`, where 0 says that there is no such file. `backgrounds` has the
    file of each background by its number.
    """

    background_folder: str
    backgrounds: Mapping[int, str]
    groups: Sequence[GroupFolder]
    suffix_names: Sequence[str]
    stems: Sequence[str]
    numbers: NDArray[np.int64]
    suffixes: NDArray[np.uint8]

    def only(self, chosen: NDArray[np.bool_]) -> "FlatTuples":
        """Those that are `chosen`, bool (tuples,)."""
        stems = [self.stems[i] for i in np.flatnonzero(chosen).tolist()]
        return replace(self, stems=stems, numbers=self.numbers[chosen], suffixes=self.suffixes[chosen])

    def group_by(self, *, column: int) -> Groups:
        """The tuples by one of their numbers."""
        known, codes = np.unique(self.numbers[:, column], return_inverse=True)
        return Groups(tuple(map(str, known)), codes.astype(np.int32))

    def digest(self) -> str:
        """SHA-256 of all file names, which tell the keys, in order."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            digest.update("\0".join((*self.files(i), "")).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def key(self, i: int) -> str:
        """The key of tuple `i`."""
        background, foreground, flip, row, column, _ = self.numbers[i].tolist()
        return f"bg{background}_fg_{foreground}{'_flip' if flip else ''}_{row}_{column}"

    def files(self, i: int) -> tuple[str, ...]:
        """The files of tuple `i`; those that are missing by the names that one would expect."""
        stem = self.stems[i]
        background = self.numbers.item(i, 0)
        group = self.groups[self.numbers.item(i, 5)].name
        fgbg, depth, mask = (
            suffixes[place] for suffixes, place in zip(self._suffixes_by_place, self.suffixes[i].tolist(), strict=True)
        )
        return (
            f"{self.background_folder}/{self.backgrounds.get(background) or self._missing_background(background)}",
            f"{group}/{stem}{fgbg}",
            f"depth_{group}/depth_{stem}{depth}",
            f"mask_{group}/mask_{stem}{mask}",
        )

    def _missing_background(self, number: int) -> str:
        other = next(iter(self.backgrounds.values()), ".jpg")
        return f"bg{number}.{other.rpartition('.')[2]}"

    @cached_property
    def _suffixes_by_place(self) -> list[list[str]]:
        """Of fgbg, depth and mask: the suffix that each place stands for; 0 for that of the first file there is."""
        usual = [self.suffix_names[column[column > 0][0]] if column.any() else ".jpg" for column in self.suffixes.T]
        return [[suffix, *self.suffix_names[1:]] for suffix in usual]

    def __len__(self) -> int:
        return len(self.stems)

    def tuple_at(self, index: int) -> SourceTuple:
        background, foreground, flip, row, column, place = self.numbers[index].tolist()
        return SourceTuple(
            key=self.key(index),
            files=self.files(index),
            metadata=(
                f'{{"background":{background},"foreground":{foreground},"flip":{"true" if flip else "false"},'
                f'"row":{row},"column":{column},"group":{self.groups[place].number}}}'
            ),
            background=f"bg{background}",
        )
