"""The index split of the write-up, at its own numbers and at the edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.split import split_by_index


def test_the_write_ups_numbers() -> None:
    """100 backgrounds of 4,000 tuples: 300,000 train, 100,000 test."""
    by_default = split_by_index([4000] * 100, train=None, test=None)
    by_number = split_by_index([4000] * 100, train=300_000, test=100_000)
    assert by_default == by_number
    assert by_default.splits == {"train": range(300_000), "test": range(300_000, 400_000)}
    assert by_default.notes == ()


@pytest.mark.parametrize(("backgrounds", "train"), [(2, 1), (3, 2), (4, 3), (5, 3), (7, 5), (24, 18), (40, 30)])
def test_three_quarters_of_the_backgrounds_train(backgrounds: int, train: int) -> None:
    split = split_by_index([10] * backgrounds, train=None, test=None)
    assert split.splits == {"train": range(10 * train), "test": range(10 * train, 10 * backgrounds)}


def test_one_background_leaves_nothing_to_test() -> None:
    split = split_by_index([10], train=None, test=None)
    assert split.splits == {"train": range(10)}
    assert split.notes == ("no tuples are left for a test split",)


def test_a_cut_inside_a_background_is_noted() -> None:
    split = split_by_index([10, 10, 10], train=15, test=None)
    assert split.splits == {"train": range(15), "test": range(15, 30)}
    assert len(split.notes) == 1
    assert "inside background 2 of 3" in split.notes[0]


def test_unused_tuples_are_noted() -> None:
    split = split_by_index([10, 10], train=10, test=4)
    assert split.splits == {"train": range(10), "test": range(10, 14)}
    assert split.notes == ("6 of 20 tuples belong to no split (beyond --train and --test)",)


def test_train_alone_needs_no_warning_of_a_cut() -> None:
    split = split_by_index([10, 10], train=5, test=0)
    assert split.splits == {"train": range(5)}
    assert not any("inside" in note for note in split.notes)


@pytest.mark.parametrize("train", [0, -1, 21])
def test_train_out_of_range(train: int) -> None:
    with pytest.raises(UserError, match=rf"--train {train}: the source has 20 tuples; expected 1 to 20"):
        split_by_index([10, 10], train=train, test=None)


@pytest.mark.parametrize("test", [-1, 6])
def test_test_out_of_range(test: int) -> None:
    with pytest.raises(UserError, match=rf"--test {test}: 20 tuples less 15 for training leave 5; expected 0 to 5"):
        split_by_index([10, 10], train=15, test=test)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=30))
def test_default_never_shares_a_background(per_background: list[int]) -> None:
    split = split_by_index(per_background, train=None, test=None)
    train, test = split.splits["train"], split.splits["test"]
    assert len(train) + len(test) == sum(per_background)
    assert len(train) in {sum(per_background[:n]) for n in range(1, len(per_background))}
