"""Which samples make up global batch *t*: pure arithmetic that never reads anything.

The order of an epoch is a function of (seed, stage, epoch, shard lengths, global batch, lanes) and of nothing else.
Number of processes, nodes, threads and micro-batches only decide who takes which rows of a global batch, never what is
in it.

Construction. The shards are permuted and laid end to end: a virtual sequence of N positions in which every sample of
the split has exactly one; inside a shard the samples are permuted too. The sequence is cut into L lanes of contiguous
positions, lane l beginning at floor(l N / L). Global batch t takes the next B/L positions of each lane, so every
position is taken at most once, at a step that follows by division: going to any step costs no reading. What it
promises, and why, is in docs/data-plane.md.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shard_tools.errors import UserError
from shard_tools.permutation import permutation

MAX_LANES = 64

ORDER_VERSION = 2
"""Changes with the order itself: a run that was begun with another one cannot go on with this one."""

_BLOCK_SAMPLES = 4096

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


class Span(NamedTuple):
    """A stretch of batches that read from a shard: numbers of the first and of the last one, both included."""

    shard: int
    first: int
    last: int


class Reading(NamedTuple):
    """What a process reads: its batches, one after the other, and what can be known of them beforehand."""

    batches: Iterator[SampleRefs]
    spans: list[Span]
    """Which batches, counted from 0, read from which shard; in the order of their first batch."""
    others: Callable[[int, int], Iterator[tuple[int, int]]] | None = None
    """Of a batch and a row in it, the (shard, sample) of the other rows of its global batch, the nearest first."""


def lane_count(global_batch: int, most: int = MAX_LANES) -> int:
    """The largest divisor of `global_batch` that is at most `most`: part of the definition of the order."""
    return next(lanes for lanes in range(min(global_batch, most), 0, -1) if global_batch % lanes == 0)


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


def steps_of_epoch(samples: int, global_batch: int) -> tuple[int, int]:
    """How many global batches `samples` fill, and how many samples are left out of an epoch because they fill none.

    Others are left out in another epoch. Raises UserError if no batch can be filled.
    """
    steps, dropped = divmod(samples, global_batch)
    if steps == 0:
        raise UserError(
            f"batch: a global batch of {global_batch} can't be filled from {samples} samples; "
            f"use a batch of {samples} or less"
        )
    return steps, dropped


class EpochOrder:
    """The order of one epoch. Memory is O(shards); any batch is found in O(batch · log shards)."""

    def __init__(
        self,
        shard_lengths: Sequence[int],
        *,
        seed: int,
        stage: int,
        epoch: int,
        global_batch: int,
        max_lanes: int = MAX_LANES,
    ) -> None:
        """`shard_lengths`: samples per shard in the manifest's order. Raises UserError if no batch can be filled."""
        self.samples = int(sum(shard_lengths))
        self.steps, self.dropped = steps_of_epoch(self.samples, global_batch)
        self.global_batch = global_batch
        self.lanes = lane_count(global_batch, max_lanes)
        self._per_step = global_batch // self.lanes
        self._key = (seed, stage, epoch)
        self._shards = permutation(len(shard_lengths), "shards", *self._key)
        self._lengths = np.asarray(shard_lengths, dtype=np.int64)
        self._ends = np.cumsum(self._lengths[self._shards])
        self._inside: OrderedDict[int, Indices] = OrderedDict()

    def batch(self, step: int, rows: range | None = None) -> SampleRefs:
        """The samples of global batch `step`, or of some of its `rows`. Raises IndexError outside the epoch."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        rows = range(self.global_batch) if rows is None else rows
        if not rows:
            return SampleRefs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        return next(self._batches(range(step, step + 1), [rows]))

    def reading(self, first_step: int, parts: Sequence[range]) -> Reading:
        """What a process reads from `first_step` to the end of the epoch: of each global batch the rows in `parts`.

        `parts` are the process's micro-batches, contiguous and in order; each is a batch of its own.
        """
        steps = range(first_step, self.steps)
        twin = copy(self)  # what others() keeps of it is for the threads that call it, not for this one
        twin._inside = OrderedDict()
        lock = threading.Lock()

        def others(batch: int, row: int) -> Iterator[tuple[int, int]]:
            step, part = divmod(batch, len(parts))
            own = parts[part][row]
            for distance in range(1, self.global_batch):
                place = (own + distance) % self.global_batch
                with lock:
                    refs = twin.batch(first_step + step, range(place, place + 1))
                yield int(refs.shard[0]), int(refs.sample[0])

        return Reading(self._batches(steps, parts), self._spans(steps, parts), others)

    def _batches(self, steps: range, parts: Sequence[range]) -> Iterator[SampleRefs]:
        lanes = self._lanes_of(parts)
        left_out = lanes.start * self._per_step
        block = max(1, _BLOCK_SAMPLES // (len(lanes) * self._per_step))
        for start in range(steps.start, steps.stop, block):
            count = min(block, steps.stop - start)
            shard, sample = self._locate(start, count, lanes)
            for step in range(count):
                for part in parts:
                    rows = slice(part.start - left_out, part.stop - left_out)
                    yield SampleRefs(shard[step, rows], sample[step, rows])

    def _lanes_of(self, parts: Sequence[range]) -> range:
        return range(parts[0].start // self._per_step, (parts[-1].stop - 1) // self._per_step + 1)

    def _lane_start(self, lane: int) -> int:
        return lane * self.samples // self.lanes

    def _locate(self, step: int, count: int, lanes: range) -> tuple[Indices, Indices]:
        """Shard and sample of all rows of `lanes` in `count` steps from `step` on, each (count, rows)."""
        shape = (len(lanes), count * self._per_step)
        shards, samples = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        for row, lane in enumerate(lanes):
            position = self._lane_start(lane) + step * self._per_step
            done = 0
            slot = int(np.searchsorted(self._ends, position, side="right"))
            while done < shape[1]:
                number = int(self._shards[slot])
                offset = position - int(self._ends[slot] - self._lengths[number])
                taken = min(int(self._lengths[number]) - offset, shape[1] - done)
                shards[row, done : done + taken] = number
                samples[row, done : done + taken] = self._order_inside(number)[offset : offset + taken]
                position, done, slot = position + taken, done + taken, slot + 1

        def by_step(values: Indices) -> Indices:
            return values.reshape(len(lanes), count, self._per_step).swapaxes(0, 1).reshape(count, -1)

        return by_step(shards), by_step(samples)

    def _spans(self, steps: range, parts: Sequence[range]) -> list[Span]:
        spans = []
        for lane in self._lanes_of(parts) if steps else ():
            start = self._lane_start(lane)
            begin, end = start + steps.start * self._per_step, start + steps.stop * self._per_step
            slots = np.searchsorted(self._ends, [begin, end - 1], side="right")
            for slot in range(slots[0], slots[1] + 1):
                number = int(self._shards[slot])
                first = max(int(self._ends[slot] - self._lengths[number]), begin) - begin
                last = min(int(self._ends[slot]), end) - 1 - begin
                batches = (first // self._per_step * len(parts), (last // self._per_step + 1) * len(parts) - 1)
                spans.append(Span(number, *batches))
        return sorted(spans, key=lambda span: span.first)

    def _order_inside(self, shard: int) -> Indices:
        """The permutation inside a shard; the most recent ones are kept, two for each lane."""
        if shard in self._inside:
            self._inside.move_to_end(shard)
        else:
            self._inside[shard] = permutation(int(self._lengths[shard]), "samples", *self._key, shard)
            if len(self._inside) > 2 * self.lanes:
                self._inside.popitem(last=False)
        return self._inside[shard]


def in_packing_order(shard_lengths: Sequence[int], positions: range, batch: int) -> Reading:
    """The samples at `positions` of the packing order, `batch` at a time, for evaluation and pictures."""
    lengths = np.asarray(shard_lengths, dtype=np.int64)
    ends = np.cumsum(lengths)

    def locate(part: range) -> SampleRefs:
        place = np.arange(part.start, part.stop, dtype=np.int64)
        shard = np.searchsorted(ends, place, side="right").astype(np.int64)
        return SampleRefs(shard, place - (ends[shard] - lengths[shard]))

    spans = []
    if positions:
        shards = np.searchsorted(ends, [positions.start, positions.stop - 1], side="right")
        for number in range(shards[0], shards[1] + 1):
            first = max(int(ends[number] - lengths[number]), positions.start) - positions.start
            last = min(int(ends[number]), positions.stop) - 1 - positions.start
            spans.append(Span(number, first // batch, last // batch))
    starts = range(0, len(positions), batch)
    return Reading((locate(positions[start : start + batch]) for start in starts), spans)
