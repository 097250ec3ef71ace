"""The order of samples: once an epoch, the same for any cut into processes, found without reading."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.order import (
    MAX_LANES,
    EpochOrder,
    SampleRefs,
    cut,
    in_packing_order,
    lane_count,
    rows_of_rank,
    subset_lengths,
)
from shard_tools.errors import UserError

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=12)
batches = st.integers(1, 96)


def order(shard_lengths: list[int], batch: int, *, seed: int = 0, stage: int = 0, epoch: int = 0) -> EpochOrder:
    return EpochOrder(shard_lengths, seed=seed, stage=stage, epoch=epoch, global_batch=batch)


def pairs(refs: SampleRefs) -> list[tuple[int, int]]:
    return list(zip(refs.shard.tolist(), refs.sample.tolist(), strict=True))


def whole_epoch(epoch_order: EpochOrder) -> list[list[tuple[int, int]]]:
    return [pairs(epoch_order.batch(step)) for step in range(epoch_order.steps)]


@given(lengths, batches, st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 50))
def test_every_sample_comes_at_most_once_and_only_a_partial_batch_is_left_out(
    shard_lengths: list[int], batch: int, seed: int, stage: int, epoch: int
) -> None:
    batch = min(batch, sum(shard_lengths))
    epoch_order = order(shard_lengths, batch, seed=seed, stage=stage, epoch=epoch)
    seen = [pair for step in whole_epoch(epoch_order) for pair in step]
    everything = {(shard, sample) for shard, length in enumerate(shard_lengths) for sample in range(length)}
    assert len(seen) == len(set(seen))
    assert set(seen) <= everything
    assert len(everything) - len(seen) == epoch_order.dropped == sum(shard_lengths) % batch


@given(lengths, st.integers(12, 192), st.integers(1, 12), st.data())
def test_a_global_batch_is_the_same_for_any_number_of_processes(
    shard_lengths: list[int], batch: int, world_size: int, data: st.DataObject
) -> None:
    shard_lengths = [*shard_lengths, 200]
    whole = order(shard_lengths, batch)
    step = data.draw(st.integers(0, whole.steps - 1))
    parts = []
    for rank in range(world_size):
        rows = rows_of_rank(batch, rank, world_size)
        own = order(shard_lengths, batch)  # each process has its own object, with its own caches
        half = rows.start + len(rows) // 2
        parts += pairs(own.batch(step, range(rows.start, half))) + pairs(own.batch(step, range(half, rows.stop)))
    assert parts == pairs(whole.batch(step))


@given(lengths, batches)
def test_going_to_a_step_gives_what_walking_to_it_gives(shard_lengths: list[int], batch: int) -> None:
    batch = min(batch, sum(shard_lengths))
    walked = whole_epoch(order(shard_lengths, batch))
    for step in reversed(range(len(walked))):
        assert pairs(order(shard_lengths, batch).batch(step)) == walked[step]


def test_epochs_stages_and_seeds_have_different_orders() -> None:
    shard_lengths = [50] * 10
    firsts = [
        tuple(pairs(order(shard_lengths, 20, seed=seed, stage=stage, epoch=epoch).batch(0)))
        for seed in (0, 1)
        for stage in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(firsts)) == len(firsts)


def test_the_order_is_the_one_that_runs_were_begun_with() -> None:
    """A change here would let a resumed run see some samples twice and others never."""
    found = pairs(order([3, 5, 4], 4, seed=7, stage=1, epoch=2).batch(1))
    assert found == GOLDEN, found


def test_a_batch_mixes_as_many_shards_as_there_are_lanes() -> None:
    epoch_order = order([100] * 80, 64)
    for step in range(epoch_order.steps):
        assert len(set(epoch_order.batch(step).shard.tolist())) >= 60  # lanes of 125 positions may meet in a shard


def test_neighbours_in_a_shard_are_far_apart_in_the_epoch() -> None:
    epoch_order = order([100] * 10, 10)
    position = {pair: i for i, pair in enumerate(p for step in whole_epoch(epoch_order) for p in step)}
    steps = np.array([[position[s, i] // 10 for i in range(100)] for s in range(10)])
    apart = np.abs(np.diff(steps, axis=1)).mean()
    assert apart > 20  # uniformly random places in 100 steps are 33 apart on average


@given(st.integers(1, 5000))
def test_lanes_divide_the_batch(batch: int) -> None:
    lanes = lane_count(batch)
    assert 1 <= lanes <= min(batch, MAX_LANES)
    assert batch % lanes == 0
    assert not [other for other in range(lanes + 1, min(batch, MAX_LANES) + 1) if batch % other == 0]


def test_a_process_opens_only_its_own_shards() -> None:
    epoch_order = order([64] * 64, 64)
    opened = [
        {
            shard
            for step in range(epoch_order.steps)
            for shard in epoch_order.batch(step, rows_of_rank(64, rank, 8)).shard.tolist()
        }
        for rank in range(8)
    ]
    assert sum(map(len, opened)) == len(set.union(*opened)) == 64


def test_a_batch_of_fewer_samples_than_processes_is_refused() -> None:
    with pytest.raises(UserError, match="global batch of 4 can't be cut for 6 processes") as error:
        rows_of_rank(4, 0, 6)
    assert "at most 4 processes, or make the batch 6 or more" in str(error.value)


def test_too_few_samples_for_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match="batch of 64 can't be filled from 10 samples"):
        order([10], 64)


def test_a_step_outside_the_epoch_is_an_error() -> None:
    with pytest.raises(IndexError):
        order([10], 5).batch(2)


@given(lengths, st.data())
def test_a_subset_is_a_prefix_of_the_larger_ones(shard_lengths: list[int], data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, sum(shard_lengths)))
    subset = subset_lengths(shard_lengths, samples)
    assert sum(subset) == samples
    assert subset[:-1] == shard_lengths[: len(subset) - 1]
    assert subset[-1] <= shard_lengths[len(subset) - 1]


def test_a_subset_larger_than_the_split_is_refused() -> None:
    with pytest.raises(UserError, match="11 asked for, but the split holds 10"):
        subset_lengths([4, 6], 11)


@given(st.integers(0, 300), st.integers(1, 17))
def test_parts_cover_everything_once_and_evenly(count: int, parts: int) -> None:
    ranges = cut(count, parts)
    assert [i for part in ranges for i in part] == list(range(count))
    assert len(ranges) == parts
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(lengths)
def test_packing_order_is_shard_after_shard(shard_lengths: list[int]) -> None:
    everything = [(shard, sample) for shard, length in enumerate(shard_lengths) for sample in range(length)]
    assert pairs(in_packing_order(shard_lengths, range(len(everything)))) == everything


def test_a_billion_samples_are_planned_in_little_memory() -> None:
    shard_lengths = [10_000] * 100_000
    tracemalloc.start()
    epoch_order = order(shard_lengths, 4096)
    refs = epoch_order.batch(epoch_order.steps // 2, rows_of_rank(4096, 3, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(refs) == 512
    assert peak < 200 * 2**20


GOLDEN = [(2, 1), (1, 0), (1, 2), (0, 1)]
