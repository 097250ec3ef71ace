"""Which tuples train and which test, by their index. Arithmetic on counts alone; never reads a tree."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shard_tools.errors import UserError


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Index ranges of the splits that have tuples, in order, and what the user should know about them."""

    splits: dict[str, range]
    notes: tuple[str, ...]


def split_by_index(per_background: Sequence[int], *, train: int | None, test: int | None) -> SplitPlan:
    """Cut the tuples, ordered by background, into the first `train` and the `test` that follow them.

    `per_background` holds the number of tuples of each background, each at least 1. Without `train`, the first 3/4
    of the backgrounds train (at least one; of two or more, at least one is left to test); without `test`, all the
    rest tests. Raises UserError where the tuples do not suffice.
    """
    ends = list(accumulate(per_background))
    total = ends[-1] if ends else 0
    if train is None:
        backgrounds = len(ends)
        first = max(1, min(backgrounds * 3 // 4, backgrounds - 1))
        train = ends[first - 1] if ends else 0
    if not 1 <= train <= total:
        raise UserError(f"--train {train}: the source has {total} tuples; expected 1 to {total}")
    rest = total - train
    test = rest if test is None else test
    if not 0 <= test <= rest:
        raise UserError(f"--test {test}: {total} tuples less {train} for training leave {rest}; expected 0 to {rest}")
    notes = []
    if test == 0:
        notes.append("no tuples are left for a test split")
    if unused := rest - test:
        notes.append(f"{unused:,} of {total:,} tuples belong to no split (beyond --train and --test)")
    if test and train not in ends:
        number = bisect_left(ends, train) + 1
        notes.append(
            f"the cut after {train:,} tuples falls inside background {number} of {len(ends)}: "
            "it is seen in training and in the test split"
        )
    splits = {"train": range(train), "test": range(train, train + test)}
    return SplitPlan({name: indices for name, indices in splits.items() if indices}, tuple(notes))
