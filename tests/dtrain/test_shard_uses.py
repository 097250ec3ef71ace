"""Which shards are in use when, and that a reader never waits for itself: arithmetic against brute force."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.admission import Admission
from dtrain.data.uses import ShardUse, largest_window
from shard_tools.manifest import Shard


def shard(number: int, size: int) -> Shard:
    sha256, index_sha256 = (hashlib.sha256(f"{kind}{number}".encode()).hexdigest() for kind in ("tar", "idx"))
    return Shard(
        file=f"{number}.tar", samples=1, bytes=size, sha256=sha256, index=f"{number}.idx", index_sha256=index_sha256
    )


@st.composite
def use_lists(draw: st.DrawFn) -> list[ShardUse]:
    """Uses of a few shards of unequal size, several of the same shard among them, in any order."""
    shards = [shard(number, draw(st.integers(1, 4))) for number in range(draw(st.integers(1, 8)))]
    spans = st.tuples(st.sampled_from(shards), st.integers(0, 20), st.integers(0, 8))
    return [ShardUse(one, first, first + length) for one, first, length in draw(st.lists(spans, max_size=20))]


def alive(uses: list[ShardUse], batch: int) -> dict[str, int]:
    return {use.shard.sha256: use.shard.bytes for use in uses if use.first <= batch <= use.last}


def test_windows_of_lanes() -> None:
    one, two, three = shard(1, 10), shard(2, 20), shard(3, 40)
    assert largest_window([]) == (0, 0)
    assert largest_window([ShardUse(one, 0, 5), ShardUse(two, 6, 9), ShardUse(three, 10, 12)]) == (1, 40)
    assert largest_window([ShardUse(one, 0, 6), ShardUse(two, 6, 9)]) == (2, 30)
    assert largest_window([ShardUse(one, 0, 5), ShardUse(one, 3, 9)]) == (1, 10)
    assert largest_window([ShardUse(one, 0, 2), ShardUse(two, 0, 2), ShardUse(three, 3, 4)]) == (2, 40)


@given(use_lists())
def test_the_largest_window(uses: list[ShardUse]) -> None:
    windows = [alive(uses, batch) for batch in range(30)]
    expected = max(map(len, windows)), max(sum(window.values()) for window in windows)
    assert largest_window(uses) == expected


@given(use_lists())
def test_a_share_of_the_largest_window_is_enough(uses: list[ShardUse]) -> None:
    """The reader finds every shard let in when it comes to the batch, though it has released only what is over."""
    shards, share = largest_window(uses)
    admission = Admission(uses, share, shards)

    def let_in() -> None:
        while admission.let_in_next() is not None:
            pass
        assert sum(held.shard.bytes for held in admission.held.values()) <= share
        assert len(admission.held) <= shards

    for batch in range(30):
        for use in sorted(uses, key=lambda use: use.last):
            if use.last == batch - 1:
                admission.release(use.shard)
                let_in()
        let_in()
        assert admission.held.keys() >= alive(uses, batch).keys()
    assert not admission.held


def test_the_share_is_kept() -> None:
    one, two = shard(1, 4), shard(2, 1)
    admission = Admission([ShardUse(one, 0, 0), ShardUse(two, 1, 1)], 4, 2)
    let_in = admission.let_in_next()
    assert let_in is not None
    assert let_in.shard is one
    assert admission.let_in_next() is None
    assert admission.release(one) is let_in
    let_in = admission.let_in_next()
    assert let_in is not None
    assert let_in.shard is two


def test_what_is_expected() -> None:
    """From the announcement until the last use is released."""
    one, two, three = shard(1, 10), shard(2, 10), shard(3, 10)
    admission = Admission([ShardUse(one, 0, 1), ShardUse(two, 2, 3), ShardUse(one, 4, 5)], 10, 1)
    for used in (one, two, one):
        assert admission.expects(used)
        assert not admission.expects(three)
        admission.let_in_next()
        assert admission.expects(used)
        assert admission.release(used) is not None
        assert admission.release(used) is None
    assert not admission.expects(one)
    assert not admission.expects(two)


def test_how_soon_a_shard_is_needed() -> None:
    one, two = shard(1, 10), shard(2, 10)
    admission = Admission([ShardUse(one, 0, 1), ShardUse(two, 4, 5), ShardUse(one, 8, 9)], 10, 1)
    assert admission.next_need(one.sha256) < admission.next_need(two.sha256) < admission.next_need("0" * 64)
    admission.let_in_next()
    assert admission.next_need(one.sha256) < admission.next_need(two.sha256)
    assert admission.next_need(one.index_sha256) == admission.next_need(one.sha256)
    admission.release(one)
    assert admission.next_need(two.sha256) < admission.next_need(one.sha256) < admission.next_need("0" * 64)
    assert admission.next_need(one.index_sha256) == admission.next_need(one.sha256)
