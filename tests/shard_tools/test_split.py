"""Every way to split, at the write-up's own numbers and at the edges: nothing doubled, nothing leaked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.layouts import Groups
from shard_tools.split import SplitPlan, SplitRule, split_by_index, split_tuples


def groups(sizes: Sequence[int]) -> Groups:
    """Tuples grouped in a row, `sizes` of them each; names are numbers from 1 on."""
    codes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return Groups(tuple(str(number + 1) for number in range(len(sizes))), codes)


@dataclass(frozen=True)
class Source:
    """As much of what a scan finds as splitting looks at."""

    tuples: range
    backgrounds: Groups
    foregrounds: Groups | None = None
    splits: Groups | None = None
    layout: str = "nested"


def grid(backgrounds: int, foregrounds: int, placements: int) -> Source:
    count = backgrounds * foregrounds * placements
    pairs = np.arange(count, dtype=np.int32) // placements
    names = tuple(str(number + 1) for number in range(foregrounds))
    return Source(
        range(count), groups([foregrounds * placements] * backgrounds), Groups(names, pairs % np.int32(foregrounds))
    )


def plan(source: Source, *, seed: int = 0, **rule: Any) -> SplitPlan:
    return split_tuples(source, SplitRule(**rule), seed)  # type: ignore[arg-type] # Source has what is used


def ranges(split: SplitPlan) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in split.splits.items()}


def between(start: int, stop: int) -> list[int]:
    return list(range(start, stop))


# By index


def test_the_write_ups_numbers() -> None:
    """100 backgrounds of 4,000 tuples: 300,000 train, 100,000 test."""
    by_default = split_by_index(groups([4000] * 100), train=None, test=None)
    by_number = split_by_index(groups([4000] * 100), train=300_000, test=100_000)
    assert ranges(by_default) == ranges(by_number)
    assert ranges(by_default) == {"train": between(0, 300_000), "test": between(300_000, 400_000)}
    assert by_default.notes == ()


@pytest.mark.parametrize(("backgrounds", "train"), [(2, 1), (3, 2), (4, 3), (5, 3), (7, 5), (24, 18), (40, 30)])
def test_three_quarters_of_the_backgrounds_train(backgrounds: int, train: int) -> None:
    split = split_by_index(groups([10] * backgrounds), train=None, test=None)
    assert ranges(split) == {"train": between(0, 10 * train), "test": between(10 * train, 10 * backgrounds)}


def test_one_background_leaves_nothing_to_test() -> None:
    split = split_by_index(groups([10]), train=None, test=None)
    assert ranges(split) == {"train": between(0, 10)}
    assert split.notes == ("no tuples are left for a test split",)


def test_a_cut_inside_a_background_is_noted() -> None:
    split = split_by_index(groups([10, 10, 10]), train=15, test=None)
    assert ranges(split) == {"train": between(0, 15), "test": between(15, 30)}
    assert split.notes == ("the cut after 15 tuples leaves 1 background(s) both in training and in the test split: 2",)


def test_unused_tuples_are_noted() -> None:
    split = split_by_index(groups([10, 10]), train=10, test=4)
    assert ranges(split) == {"train": between(0, 10), "test": between(10, 14)}
    assert split.notes == ("6 of 20 tuples belong to no split (beyond --train and --test)",)


def test_train_alone_needs_no_warning_of_a_cut() -> None:
    split = split_by_index(groups([10, 10]), train=5, test=0)
    assert ranges(split) == {"train": between(0, 5)}
    assert not any("both" in note for note in split.notes)


@pytest.mark.parametrize("train", [0, -1, 21])
def test_train_out_of_range(train: int) -> None:
    with pytest.raises(UserError, match=rf"--train {train}: the source has 20 tuples; expected 1 to 20"):
        split_by_index(groups([10, 10]), train=train, test=None)


@pytest.mark.parametrize("test", [-1, 6])
def test_test_out_of_range(test: int) -> None:
    with pytest.raises(UserError, match=rf"--test {test}: 20 tuples less 15 for training leave 5; expected 0 to 5"):
        split_by_index(groups([10, 10]), train=15, test=test)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=30))
def test_default_never_shares_a_background(per_background: list[int]) -> None:
    split = split_by_index(groups(per_background), train=None, test=None)
    train, test = split.splits["train"], split.splits["test"]
    assert len(train) + len(test) == sum(per_background)
    assert len(train) in {sum(per_background[:n]) for n in range(1, len(per_background))}


# By held-out groups


@given(
    st.sampled_from(["backgrounds", "foregrounds"]),
    st.integers(2, 9),
    st.integers(2, 9),
    st.floats(0.01, 0.99),
    st.integers(0, 99),
)
def test_held_out_groups_are_never_trained_on(
    by: str, backgrounds: int, foregrounds: int, share: float, seed: int
) -> None:
    source = grid(backgrounds, foregrounds, 3)
    split = plan(source, by=by, test_share=share, seed=seed)
    found: Groups = getattr(source, by)
    trained, tested = (set(found.codes[split.splits[name]].tolist()) for name in ("train", "test"))
    assert not trained & tested
    assert trained | tested == set(range(len(found.names)))
    assert len(tested) == max(1, min(round(share * len(found.names)), len(found.names) - 1))
    assert sorted(np.concatenate(list(split.splits.values())).tolist()) == list(source.tuples)


def test_held_out_by_name() -> None:
    source = grid(4, 3, 2)
    split = plan(source, by="foregrounds", hold_out=("3", "1"))
    assert source.foregrounds is not None
    assert set(source.foregrounds.codes[split.splits["test"]].tolist()) == {0, 2}
    assert split.notes == ("foregrounds held out for the test split: 2 of 3 (1, 3)",)


def test_the_choice_depends_on_the_seed_alone() -> None:
    tests = [ranges(plan(grid(20, 2, 2), by="backgrounds", seed=seed))["test"] for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


# By fraction, by column


@given(st.integers(2, 500), st.floats(0.01, 0.99))
def test_a_fraction_of_the_tuples_tests(count: int, share: float) -> None:
    source = Source(range(count), groups([count]))
    split = plan(source, by="fraction", test_share=share)
    assert len(split.splits["test"]) == max(1, min(round(share * count), count - 1))
    assert sorted(np.concatenate(list(split.splits.values())).tolist()) == list(range(count))
    assert "the same backgrounds and foregrounds" in split.notes[0]


def test_a_column_names_the_splits() -> None:
    column = Groups(("train", "val"), np.array([0, 1, -1, 0, 1, 0], np.int32))
    split = plan(Source(range(6), groups([6]), splits=column))
    assert ranges(split) == {"train": [0, 3, 5], "val": [1, 4]}
    assert split.by == "column"
    assert split.notes == ("1 of 6 tuples belong to no split (empty in the column split)",)


def test_a_source_that_is_not_sorted_has_no_first_backgrounds() -> None:
    mixed = Groups(("a", "b", "c", "d"), np.arange(40, dtype=np.int32) % 4)
    with pytest.raises(UserError, match=r"not in the order of their backgrounds.*give --train N, or another --split"):
        split_by_index(mixed, train=None, test=None)
    assert len(split_by_index(mixed, train=30, test=None).splits["test"]) == 10


def test_an_empty_column_splits_nothing() -> None:
    with pytest.raises(UserError, match="the column split is empty in every row"):
        plan(Source(range(3), groups([3]), splits=Groups((), np.full(3, -1, np.int32))))


# Options that are wrong


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"by": "backgrounds", "train": 5}, "--train: is for --split index; this is --split backgrounds"),
        ({"test_share": 0.5}, "--test-share: is for .*; this is --split index"),
        ({"by": "fraction", "hold_out": ("1",)}, "--hold-out: is for --split backgrounds, --split foregrounds; this"),
        ({"by": "backgrounds", "hold_out": ("1",), "test_share": 0.5}, "--hold-out and --test-share"),
        ({"by": "backgrounds", "hold_out": ("7", "1")}, "--hold-out 7: no such backgrounds; the source has 1, 2, 3"),
        ({"by": "foregrounds", "hold_out": ("1", "2")}, "all 2 foregrounds are held out"),
        ({"by": "backgrounds", "test_share": 1.0}, "--test-share 1: expected a share between 0 and 1"),
        ({"by": "fraction", "test_share": 0.0}, "--test-share 0: expected a share between 0 and 1"),
        ({"by": "column"}, "--split column: the source does not name splits"),
    ],
)
def test_options_that_do_not_fit_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(grid(3, 2, 2), **rule)


def test_what_the_source_does_not_have() -> None:
    with pytest.raises(UserError, match="the table layout tells no foregrounds"):
        plan(Source(range(4), groups([4]), layout="table"), by="foregrounds")
    with pytest.raises(UserError, match="--split backgrounds: the source has 1; expected at least 2"):
        plan(grid(1, 2, 2), by="backgrounds")
    with pytest.raises(UserError, match="--split fraction: the source has 1 tuple"):
        plan(grid(1, 1, 1), by="fraction")
