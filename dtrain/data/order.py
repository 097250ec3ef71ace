"""Which samples make up global batch *t*: pure arithmetic that never reads anything.

The order of an epoch is a function of (seed, stage, epoch, shard lengths, global batch) and of nothing else. Number of
processes, nodes, threads and micro-batches only decide who takes which rows of a global batch, never what is in it.

Construction. The shards are permuted and laid end to end: a virtual sequence in which every sample of the split has
exactly one position; inside a shard the samples are permuted too. The first `steps * global_batch` positions are cut
into L equal lanes of contiguous positions. Global batch t takes its next `global_batch / L` positions from each lane,
so every position is taken once, at a step that follows by division: going to any step costs no reading.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shard_tools.errors import UserError
from shard_tools.permutation import permutation

MAX_LANES = 64

Indices = NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Position:
    """Where a run stands: `step` global batches of `epoch` of `stage` are behind it; all count from 0.

    A `step` equal to the number of steps of an epoch means: trained, but not yet evaluated.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0

    def next_step(self) -> "Position":
        return replace(self, step=self.step + 1)

    def next_epoch(self) -> "Position":
        return Position(self.stage, self.epoch + 1, 0)

    def next_stage(self) -> "Position":
        return Position(self.stage + 1, 0, 0)


@dataclass(frozen=True)
class SampleRefs:
    """Samples by place: shard number in the manifest's list and sample number in that shard, both shape (n,)."""

    shard: Indices
    sample: Indices

    def __len__(self) -> int:
        return len(self.shard)


def lane_count(global_batch: int) -> int:
    """The largest divisor of `global_batch` that is at most 64: part of the definition of the order."""
    return next(lanes for lanes in range(min(global_batch, MAX_LANES), 0, -1) if global_batch % lanes == 0)


def subset_lengths(shard_lengths: Sequence[int], samples: int | None) -> list[int]:
    """Shard lengths of the first `samples` samples in packing order (None: all).

    Raises UserError when there are fewer.
    """
    if samples is None:
        return list(shard_lengths)
    if samples > sum(shard_lengths):
        raise UserError(
            f"samples: {samples} asked for, but the split holds {sum(shard_lengths)}; ask for fewer "
            "(--stages.N.samples on the command line), or leave the key out to take all"
        )
    starts = np.cumsum([0, *shard_lengths])[:-1]
    kept = np.clip(samples - starts, 0, shard_lengths)
    return [int(length) for length in kept if length > 0]


def rows_of_rank(global_batch: int, rank: int, world_size: int) -> range:
    """The rows of every global batch that belong to process `rank` of `world_size`; shares differ by one at most.

    Rows are ordered by lane, so a process owns whole lanes, and with them its own shards, wherever the world size
    divides the number of lanes. Raises UserError if there are more processes than rows.
    """
    if world_size > global_batch:
        raise UserError(
            f"batch: a global batch of {global_batch} can't be cut for {world_size} processes, one sample each at "
            f"least; launch at most {global_batch} processes, or make the batch {world_size} or more"
        )
    return cut(global_batch, world_size)[rank]


def cut(count: int, parts: int) -> list[range]:
    """range(count) in `parts` contiguous ranges, in order, whose lengths differ by one at most."""
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


class EpochOrder:
    """The order of one epoch. Memory is O(shards); any batch is found in O(batch · log shards)."""

    def __init__(self, shard_lengths: Sequence[int], *, seed: int, stage: int, epoch: int, global_batch: int) -> None:
        """`shard_lengths`: samples per shard in the manifest's order. Raises UserError if no batch can be filled."""
        self.samples = int(sum(shard_lengths))
        self.steps = self.samples // global_batch
        if self.steps == 0:
            raise UserError(
                f"batch: a global batch of {global_batch} can't be filled from {self.samples} samples; "
                f"use a batch of {self.samples} or less"
            )
        self.global_batch = global_batch
        self.lanes = lane_count(global_batch)
        self._key = (seed, stage, epoch)
        self._shards = permutation(len(shard_lengths), "shards", *self._key)
        self._lengths = np.asarray(shard_lengths, dtype=np.int64)
        self._ends = np.cumsum(self._lengths[self._shards])
        self._inside: OrderedDict[int, Indices] = OrderedDict()

    @property
    def dropped(self) -> int:
        """Samples left out of this epoch because they don't fill a global batch; others in another epoch."""
        return self.samples - self.steps * self.global_batch

    def batch(self, step: int, rows: range | None = None) -> SampleRefs:
        """The samples of global batch `step`, or of some of its `rows`. Raises IndexError outside the epoch."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        row = np.asarray(range(self.global_batch) if rows is None else rows, dtype=np.int64)
        per_step = self.global_batch // self.lanes
        lane, place = np.divmod(row, per_step)
        return self._locate(lane * (self.steps * per_step) + step * per_step + place)

    def _locate(self, positions: Indices) -> SampleRefs:
        slot = np.searchsorted(self._ends, positions, side="right")
        shard = self._shards[slot]
        offset = positions - (self._ends[slot] - self._lengths[shard])
        sample = np.empty_like(offset)
        for number in np.unique(shard):
            chosen = shard == number
            sample[chosen] = self._order_inside(int(number))[offset[chosen]]
        return SampleRefs(shard, sample)

    def _order_inside(self, shard: int) -> Indices:
        """The permutation inside a shard; the most recent ones are kept, two for each lane."""
        if shard in self._inside:
            self._inside.move_to_end(shard)
        else:
            self._inside[shard] = permutation(int(self._lengths[shard]), "samples", *self._key, shard)
            if len(self._inside) > 2 * self.lanes:
                self._inside.popitem(last=False)
        return self._inside[shard]


def in_packing_order(shard_lengths: Sequence[int], positions: range) -> SampleRefs:
    """The samples at `positions` of the packing order, for evaluation and pictures."""
    lengths = np.asarray(shard_lengths, dtype=np.int64)
    ends = np.cumsum(lengths)
    place = np.asarray(positions, dtype=np.int64)
    shard = np.searchsorted(ends, place, side="right").astype(np.int64)
    return SampleRefs(shard, place - (ends[shard] - lengths[shard]))
