"""From when to when each shard is in use, and what that needs at most: pure arithmetic that never reads anything."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shard_tools.manifest import Shard


@dataclass(frozen=True)
class ShardUse:
    """One stretch of batches of this process in which a shard is needed; batches count from 0.

    `first` is the first batch that reads it, `last` the one after which it may be let go: it covers the batches that
    are in flight when that one is asked for. A shard may be used in several stretches.
    """

    shard: Shard
    first: int
    last: int


def largest_window(uses: Sequence[ShardUse]) -> tuple[int, int]:
    """(shards, bytes) that are in use at the same time at most, each by its own maximum; `uses` in any order.

    A shard counts once, however many of its uses meet. Takes O(n log n) for n uses.
    """
    ends: list[tuple[int, int]] = []
    alive: Counter[str] = Counter()
    held = most_shards = most_bytes = 0
    ordered = sorted(uses, key=lambda use: use.first)
    for number, use in enumerate(ordered):
        while ends and ends[0][0] < use.first:
            over = ordered[heapq.heappop(ends)[1]].shard
            alive[over.sha256] -= 1
            if not alive[over.sha256]:
                del alive[over.sha256]
                held -= over.bytes
        heapq.heappush(ends, (use.last, number))
        if use.shard.sha256 not in alive:
            held += use.shard.bytes
        alive[use.shard.sha256] += 1
        most_shards, most_bytes = max(most_shards, len(alive)), max(most_bytes, held)
    return most_shards, most_bytes
