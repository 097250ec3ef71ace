"""Patterns of file names to the tars of each split."""

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.shard_patterns import assign, examples, expand_braces

TEXTS = st.sampled_from(["train-", "a", ".tar", "{a,b}", "{08..11}", "{3..5}", "{x}", "{,y}", "{007..007}", "*", "_"])


@given(st.lists(TEXTS, max_size=4).map("".join))
def test_braces_mean_what_they_mean_to_webdataset(pattern: str) -> None:
    """But for a brace with one name, which is no mistake here either."""
    assert list(expand_braces(pattern)) == list(braceexpand(pattern.replace("{x}", "x")))


@pytest.mark.parametrize("pattern", ["{3..2}", "{0..9999999}"])
def test_ranges_that_cannot_be_meant(pattern: str) -> None:
    with pytest.raises(UserError, match=r"--split a=\{.*expected \{FIRST\.\.LAST\} with FIRST not after LAST"):
        assign(["3.tar"], {"a": [pattern]})


def test_several_patterns_of_a_split_are_put_together() -> None:
    names = [f"{kind}-{number}.tar" for kind in ("b", "a") for number in (10, 2, 1)]
    chosen = assign(names, {"train": ["b-*", "a-{1..2}.tar", "a-1.*"], "test": ["a-10.tar"]})
    assert chosen == {"train": ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar", "b-10.tar"], "test": ["a-10.tar"]}


def test_names_that_differ_in_zeros_alone_have_an_order() -> None:
    assert assign(["1.tar", "01.tar", "0.tar"], {"a": ["*"]})["a"] == ["0.tar", "01.tar", "1.tar"]


def test_a_range_with_a_gap_names_what_is_missing() -> None:
    names = [f"t-{number:03d}.tar" for number in range(10) if number not in (4, 7)]
    with pytest.raises(UserError, match=r"--split a=t-\{000\.\.009\}\.tar: t-004\.tar, t-007\.tar: no such tar"):
        assign(names, {"a": ["t-{000..009}.tar"]})


def test_case_counts() -> None:
    with pytest.raises(UserError, match="no such tar among the 1 that are there"):
        assign(["Train-0.tar"], {"train": ["train-*"]})


def test_examples_are_the_first() -> None:
    assert examples(["10", "9", "8"]) == "8, 9, 10"
    assert examples(["10", "9", "8", "1"]) == "1, 8, 9, …"
