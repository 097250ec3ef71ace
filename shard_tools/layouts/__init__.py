"""What every layout of a source is reduced to: a sequence of tuples. Lists names; never opens an image."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from shard_tools.checks import Problem


class SourceTuple(NamedTuple):
    """One training example.

    `key` is unique in the source; letters, digits, "_" and "-", at most 80. `files` holds one path per component,
    relative to the root of the source. `metadata` is the text of a JSON object that is not empty. `background` is the
    key of the background, the same for all tuples with that file, of the same characters as `key`.
    """

    key: str
    files: tuple[str, ...]
    metadata: str
    background: str


class LazyTuples(Sequence[SourceTuple], ABC):
    """Tuples that are made when they are asked for, so that a million of them take little memory."""

    @abstractmethod
    def tuple_at(self, index: int) -> SourceTuple:
        """The tuple at `index`, from 0 to less than the length."""

    @overload
    def __getitem__(self, index: int) -> SourceTuple: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourceTuple]: ...
    def __getitem__(self, index: int | slice) -> SourceTuple | list[SourceTuple]:
        if isinstance(index, slice):
            return [self.tuple_at(i) for i in range(*index.indices(len(self)))]
        return self.tuple_at(range(len(self))[index])


@dataclass(frozen=True, slots=True)
class Groups:
    """A partition of the tuples: the groups' `names`, and the group of each tuple as `codes`, int32 (tuples,).

    Groups are in the layout's order of them, and each has a tuple; a tuple of code -1 is in none.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a scan of a source found.

    `tuples` holds the complete ones in the order of the layout's index; files are relative to `root`. `backgrounds`,
    `foregrounds` (None where the layout does not tell them) and `splits` (those that the source itself names) say how
    the tuples fall into groups. `extensions` gives one per component. `digest` identifies all keys and file names, in
    order. `found` counts incomplete tuples too; `problems` say what those lack; `notes` are things seen that the user
    should know.
    """

    layout: str
    root: Path
    tuples: Sequence[SourceTuple]
    backgrounds: Groups
    foregrounds: Groups | None
    splits: Groups | None
    extensions: tuple[str, ...]
    digest: str
    found: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


class Layout(Protocol):
    """One way in which people keep their tuples: a module with these names."""

    NAME: str
    EXPECTED: str
    """What such a source looks like, in a few words."""

    @staticmethod
    def recognise(source: Path) -> str | None:
        """Why `source` looks like this layout, in a few words; None if it does not. Looks at a few names only."""

    @staticmethod
    def scan(source: Path) -> Findings:
        """Find all tuples. Raises UserError when there are none, or where names are ambiguous."""
