"""Which tuples train and which test. Arithmetic on counts and groups alone; never reads a source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shard_tools.errors import UserError
from shard_tools.layouts import Findings, Groups
from shard_tools.permutation import permutation

By = Literal["index", "backgrounds", "foregrounds", "fraction", "column"]
WAYS: tuple[By, ...] = get_args(By)
DEFAULT_TEST_SHARE = 0.25

Indices = NDArray[np.int64]
"""Tuples by their place in the source's order, shape (tuples,), ascending."""


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How the user wants the tuples split.

    `by` None is "column" where the source names splits itself, else "index". `train` and `test` are numbers of tuples,
    for "index". `test_share` is in (0, 1): of the groups, or with "fraction" of the tuples. `hold_out` names the groups
    that test, instead of a share of them.
    """

    by: By | None = None
    train: int | None = None
    test: int | None = None
    test_share: float | None = None
    hold_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How it was split, the tuples of each split that has any, and what the user should know about them."""

    by: By
    splits: dict[str, Indices]
    notes: tuple[str, ...]


_OPTIONS: Mapping[By, tuple[str, ...]] = {
    "index": ("train", "test"),
    "backgrounds": ("test_share", "hold_out"),
    "foregrounds": ("test_share", "hold_out"),
    "fraction": ("test_share",),
    "column": (),
}


def split_tuples(findings: Findings, rule: SplitRule, seed: int) -> SplitPlan:
    """Split the tuples of a source by `rule`; `seed` decides what a share holds.

    Raises UserError where the source does not have what the rule needs, or too few tuples.
    """
    by = rule.by or ("column" if findings.splits else "index")
    _check_options(rule, by)
    total = len(findings.tuples)
    if by == "column":
        return _split_by_column(findings.splits)
    if by == "fraction":
        return _split_by_fraction(total, _share(rule), seed)
    if by == "backgrounds":
        return _hold_out(findings.backgrounds, by, rule, seed)
    if by == "foregrounds":
        if findings.foregrounds is None:
            raise UserError(
                f"--split foregrounds: the {findings.layout} layout tells no foregrounds here; "
                "give the table a column called foreground, or choose another --split"
            )
        return _hold_out(findings.foregrounds, by, rule, seed)
    return split_by_index(findings.backgrounds, train=rule.train, test=rule.test)


def split_by_index(backgrounds: Groups, *, train: int | None, test: int | None) -> SplitPlan:
    """Cut the tuples, in the source's order, into the first `train` and the `test` that follow them.

    Without `train`, those before the first tuple of the background that is 3/4 down the list train (at least one
    background; of two or more, at least one is left to test); without `test`, all the rest tests.
    """
    total = len(backgrounds.codes)
    if train is None:
        count = len(backgrounds.names)
        if np.any(np.diff(backgrounds.codes) < 0):
            raise UserError(
                "--split index: the tuples are not in the order of their backgrounds, so 3/4 of the backgrounds are no "
                "first part; give --train N, or another --split, such as --split backgrounds"
            )
        first = max(1, min(count * 3 // 4, count - 1))
        train = int(np.argmax(backgrounds.codes == first)) if first < count else total
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
    if both := np.intersect1d(backgrounds.codes[:train], backgrounds.codes[train : train + test]).tolist():
        names = _shorten([backgrounds.names[code] for code in both], 3)
        notes.append(
            f"the cut after {train:,} tuples leaves {len(both):,} background(s) both in training and in the test "
            f"split: {names}"
        )
    return _plan("index", {"train": np.arange(train), "test": np.arange(train, train + test)}, notes)


def _split_by_fraction(total: int, share: float, seed: int) -> SplitPlan:
    if total < 2:
        raise UserError(f"--split fraction: the source has {total} tuple; expected at least 2")
    count = max(1, min(round(total * share), total - 1))
    tests = np.zeros(total, dtype=bool)
    tests[permutation(total, "split", "fraction", seed)[:count]] = True
    note = "split by fraction: the same backgrounds and foregrounds are seen in training and in the test split"
    return _plan("fraction", {"train": np.flatnonzero(~tests), "test": np.flatnonzero(tests)}, [note])


def _split_by_column(splits: Groups | None) -> SplitPlan:
    if splits is None:
        raise UserError(
            "--split column: the source does not name splits; expected a table with a column called split, "
            "or choose another --split"
        )
    notes = []
    if unused := int((splits.codes < 0).sum()):
        notes.append(f"{unused:,} of {len(splits.codes):,} tuples belong to no split (empty in the column split)")
    if not splits.names:
        raise UserError("--split column: the column split is empty in every row; fill it, or choose another --split")
    by_name = {name: np.flatnonzero(splits.codes == code) for code, name in enumerate(splits.names)}
    return _plan("column", by_name, notes)


def _hold_out(groups: Groups, what: By, rule: SplitRule, seed: int) -> SplitPlan:
    """Whole groups test: those that the user names, or a share of them chosen by `seed`."""
    count = len(groups.names)
    if count < 2:
        raise UserError(f"--split {what}: the source has {count}; expected at least 2 {what}, or another --split")
    if rule.hold_out:
        unknown = [name for name in rule.hold_out if name not in groups.names]
        if unknown:
            raise UserError(
                f"--hold-out {','.join(unknown)}: no such {what}; the source has {_shorten(groups.names, 10)}"
            )
        codes = sorted({groups.names.index(name) for name in rule.hold_out})
        if len(codes) == count:
            raise UserError(f"--hold-out: all {count} {what} are held out; expected at least one left to train")
    else:
        held = max(1, min(round(count * _share(rule)), count - 1))
        codes = sorted(permutation(count, "split", what, seed)[:held].tolist())
    tests = np.isin(groups.codes, codes)
    held_out = _shorten([groups.names[code] for code in codes], 10)
    note = f"{what} held out for the test split: {len(codes):,} of {count:,} ({held_out})"
    return _plan(what, {"train": np.flatnonzero(~tests), "test": np.flatnonzero(tests)}, [note])


def _plan(by: By, splits: Mapping[str, Indices], notes: Sequence[str]) -> SplitPlan:
    return SplitPlan(by, {name: indices for name, indices in splits.items() if len(indices)}, tuple(notes))


def _share(rule: SplitRule) -> float:
    share = DEFAULT_TEST_SHARE if rule.test_share is None else rule.test_share
    if not 0 < share < 1:
        raise UserError(f"--test-share {share:g}: expected a share between 0 and 1, such as {DEFAULT_TEST_SHARE}")
    return share


def _check_options(rule: SplitRule, by: By) -> None:
    for field in fields(rule)[1:]:
        if getattr(rule, field.name) not in (None, ()) and field.name not in _OPTIONS[by]:
            option = "--" + field.name.replace("_", "-")
            ways = ", ".join(f"--split {way}" for way, options in _OPTIONS.items() if field.name in options)
            raise UserError(f"{option}: is for {ways}; this is --split {by}")
    if rule.hold_out and rule.test_share is not None:
        raise UserError("--hold-out and --test-share: expected one of them")


def _shorten(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:count]) + (f", … {names[-1]}" if len(names) > count else "")
