"""The order of samples: once an epoch, the same for any cut into processes, found without reading."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.order import (
    MAX_LANES,
    EpochOrder,
    Reading,
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


@given(st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 50))
def test_no_epoch_repeats_the_batches_of_the_one_before(seed: int, stage: int, epoch: int) -> None:
    """Of 1,000 samples in batches of 20, two orders have as good as no batch in common, as sets."""
    before, after = (order([100] * 10, 20, seed=seed, stage=stage, epoch=epoch + later) for later in (0, 1))
    assert not {frozenset(step) for step in whole_epoch(before)} & {frozenset(step) for step in whole_epoch(after)}


def test_the_order_is_the_one_that_runs_were_begun_with() -> None:
    """A change here would let a resumed run see some samples twice and others never."""
    found = pairs(order([3, 5, 4], 4, seed=7, stage=1, epoch=2).batch(1))
    assert found == GOLDEN, found


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 96), st.integers(0, 2**40))
def test_a_batch_draws_from_as_many_shards_as_it_can(length: int, shards: int, batch: int, seed: int) -> None:
    """Of equal shards: from as many as there are lanes, or from all of them."""
    batch = min(batch, length * shards)
    epoch_order = order([length] * shards, batch, seed=seed)
    for step in range(epoch_order.steps):
        assert len(set(epoch_order.batch(step).shard.tolist())) >= min(epoch_order.lanes, shards)


@given(lengths, batches, st.integers(0, 2**40))
def test_unequal_shards_are_mixed_as_far_as_their_lengths_allow(
    shard_lengths: list[int], batch: int, seed: int
) -> None:
    """A shard as long as a lane is in every batch; a shorter one fills the rows of at most two lanes."""
    batch = min(batch, sum(shard_lengths))
    epoch_order = order(shard_lengths, batch, seed=seed)
    lane = -(-sum(shard_lengths) // epoch_order.lanes)
    per_step = batch // epoch_order.lanes
    for step in range(epoch_order.steps):
        drawn = epoch_order.batch(step).shard.tolist()
        assert {shard for shard, length in enumerate(shard_lengths) if length >= lane} <= set(drawn)
        for shard, length in enumerate(shard_lengths):
            if length < lane:
                assert drawn.count(shard) <= 2 * per_step


@pytest.mark.parametrize("shard_lengths", [[100] * 10, [1000], [900, 50, 25, 25], [7] * 143])
def test_neighbours_in_a_shard_are_as_far_apart_as_in_a_random_order(shard_lengths: list[int]) -> None:
    """Two places chosen at random among w steps are (w - 1/w) / 3 apart on average; before, neighbours are one apart.

    The samples of a shard of n samples are spread over all steps if it is as long as a lane, else over those that n
    rows of a lane take. The mean over some 8,000 pairs has a standard error of about one per cent.
    """
    batch = 10
    epochs = [order(shard_lengths, batch, seed=seed) for seed in range(8)]
    apart, expected = [], []
    for epoch_order in epochs:
        step_of = {pair: step for step, drawn in enumerate(whole_epoch(epoch_order)) for pair in drawn}
        for shard, length in enumerate(shard_lengths):
            steps = [step_of[shard, sample] for sample in range(length) if (shard, sample) in step_of]
            spread = min(epoch_order.steps, length * epoch_order.lanes // batch)
            apart += np.abs(np.diff(steps)).tolist()
            expected += [(spread - 1 / spread) / 3] * (len(steps) - 1)
    assert np.mean(apart) > 0.95 * np.mean(expected)


@given(st.integers(1, 5000))
def test_lanes_divide_the_batch(batch: int) -> None:
    lanes = lane_count(batch)
    assert 1 <= lanes <= min(batch, MAX_LANES)
    assert batch % lanes == 0
    assert not [other for other in range(lanes + 1, min(batch, MAX_LANES) + 1) if batch % other == 0]


@given(lengths, st.integers(8, 96), st.integers(1, 8), st.integers(1, 5), st.data())
def test_what_a_process_reads_is_its_rows_and_is_announced(
    shard_lengths: list[int], batch: int, world_size: int, largest: int, data: st.DataObject
) -> None:
    """Each process's micro-batches, one after the other, whatever their size; and the shards it was said to need."""
    shard_lengths = [*shard_lengths, 2 * batch]
    epoch_order = order(shard_lengths, batch)
    first = data.draw(st.integers(0, epoch_order.steps))
    rank = data.draw(st.integers(0, world_size - 1))
    rows = rows_of_rank(batch, rank, world_size)
    parts = [rows[part.start : part.stop] for part in cut(len(rows), -(-len(rows) // largest))]
    reading = order(shard_lengths, batch).reading(first, parts)
    read = [pairs(refs) for refs in reading.batches]
    wanted = [pairs(epoch_order.batch(step, part)) for step in range(first, epoch_order.steps) for part in parts]
    assert read == wanted
    for number, batch_read in enumerate(read):
        announced = {span.shard for span in reading.spans if span.first <= number <= span.last}
        assert {shard for shard, _ in batch_read} <= announced
    assert [span.first for span in reading.spans] == sorted(span.first for span in reading.spans)
    assert all(0 <= span.first <= span.last < len(read) for span in reading.spans)


@given(lengths, st.integers(2, 48), st.data())
def test_others_of_a_batch_are_the_rest_of_the_global_batch(
    shard_lengths: list[int], batch: int, data: st.DataObject
) -> None:
    shard_lengths = [*shard_lengths, 2 * batch]
    epoch_order = order(shard_lengths, batch)
    world_size = data.draw(st.integers(1, batch))
    rows = rows_of_rank(batch, data.draw(st.integers(0, world_size - 1)), world_size)
    reading = epoch_order.reading(1, [rows])
    row = data.draw(st.integers(0, len(rows) - 1))
    assert reading.others is not None
    others = list(reading.others(0, row))
    whole = pairs(epoch_order.batch(1))
    place = rows[row]
    assert others == whole[place + 1 :] + whole[:place], "the same ones for any number of processes"


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16, 64])
def test_a_process_opens_only_its_own_shards(world_size: int) -> None:
    """Neighbours share at most the shard in which the lanes of one end and those of the other begin."""
    epoch_order = order([64] * 100, 128)
    opened = [
        {span.shard for span in epoch_order.reading(0, [rows_of_rank(128, rank, world_size)]).spans}
        for rank in range(world_size)
    ]
    assert set.union(*opened) == set(range(100))
    assert sum(map(len, opened)) <= 100 + world_size - 1


def test_where_lanes_are_shards_no_shard_is_opened_twice() -> None:
    epoch_order = order([64] * 64, 64)
    opened = [[span.shard for span in epoch_order.reading(0, [rows_of_rank(64, rank, 8)]).spans] for rank in range(8)]
    assert sorted(shard for shards in opened for shard in shards) == list(range(64))


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
    assert read_all(in_packing_order(shard_lengths, range(len(everything)), 7)) == everything


@given(lengths, st.integers(1, 9), st.integers(1, 20))
def test_evaluation_reads_every_sample_once_however_it_is_cut(
    shard_lengths: list[int], world_size: int, batch: int
) -> None:
    everything = [(shard, sample) for shard, length in enumerate(shard_lengths) for sample in range(length)]
    read = []
    for part in cut(len(everything), world_size):
        reading = in_packing_order(shard_lengths, part, batch)
        for number, refs in enumerate(reading.batches):
            assert 0 < len(refs) <= batch
            announced = {span.shard for span in reading.spans if span.first <= number <= span.last}
            assert set(refs.shard.tolist()) <= announced
            read += pairs(refs)
    assert read == everything


def read_all(reading: Reading) -> list[tuple[int, int]]:
    return [pair for refs in reading.batches for pair in pairs(refs)]


def test_a_billion_samples_are_planned_in_little_memory() -> None:
    shard_lengths = [10_000] * 100_000
    tracemalloc.start()
    epoch_order = order(shard_lengths, 4096)
    reading = epoch_order.reading(epoch_order.steps // 2, [rows_of_rank(4096, 3, 8)])
    refs = next(reading.batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(refs) == 512
    assert pairs(refs) == pairs(epoch_order.batch(epoch_order.steps // 2, rows_of_rank(4096, 3, 8)))
    assert peak < 200 * 2**20


GOLDEN = [(2, 1), (1, 0), (1, 2), (0, 1)]
