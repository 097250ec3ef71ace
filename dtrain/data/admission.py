"""Which shard a process takes into its share of the cache next: pure bookkeeping that never reads anything or waits.

Why a reader never waits for ever. Uses are let in strictly by their first batch, and one is let in as soon as it fits
into the share beside those that are held. Let the reader wait for the shard of use u in batch b. It has released every
use whose last batch is before b, for that needs no shard of b. So what is held, and whatever is to be let in before u,
is in use at b as u is: together they are no more than the largest window, and that fits into the share. Hence u is let
in without anything being released. A shard that is wanted out of this order, or without being announced, is borrowed:
that holds nothing of the share, so no use waits for it.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dtrain.data.uses import ShardUse
from shard_tools.manifest import Shard


@dataclass(eq=False)
class Held:
    """A shard that was let in, for `uses` stretches of batches.

    Who brings it sets `descriptor` when it is there, or `error` when it can't be had.
    """

    shard: Shard
    uses: int = 1
    descriptor: int | None = None
    error: BaseException | None = None


class Admission:
    """The shards that are held and those that are to come. Not safe to use from several threads.

    At most `share` bytes and `most` shards are held, both no less than the largest window of `uses`.
    """

    def __init__(self, uses: Sequence[ShardUse], share: int, most: int) -> None:
        self.held: dict[str, Held] = {}
        """By SHA-256."""
        self._uses = sorted(uses, key=lambda use: use.first)
        self._share = share
        self._most = most
        self._next = 0
        self._coming: dict[str, deque[int]] = {}
        self._shard_of_index: dict[str, str] = {}
        for number, use in enumerate(self._uses):
            self._coming.setdefault(use.shard.sha256, deque()).append(number)
            self._shard_of_index[use.shard.index_sha256] = use.shard.sha256

    def let_in_next(self) -> Held | None:
        """Let in uses in their order, as far as there is room, up to the first whose shard must be brought."""
        while self._next < len(self._uses):
            shard = self._uses[self._next].shard
            held = self.held.get(shard.sha256)
            if held is None and not self._fits(shard):
                return None
            self._next += 1
            self._coming[shard.sha256].popleft()
            if held is None:
                held = self.held[shard.sha256] = Held(shard)
                return held
            held.uses += 1
        return None

    def expects(self, shard: Shard) -> bool:
        """Whether a use of the shard is let in and not over, or still to come."""
        return shard.sha256 in self.held or bool(self._coming.get(shard.sha256))

    def release(self, shard: Shard) -> Held | None:
        """End one use of a shard; returns it if that was the last one for now."""
        held = self.held.get(shard.sha256)
        if held is None:
            return None
        held.uses -= 1
        return self.held.pop(shard.sha256) if held.uses == 0 else None

    def next_need(self, sha256: str) -> float:
        """How soon a shard is to be let in, by its hash or its index's: smaller is sooner, infinite is never.

        Less than 0 while it is held: its index is then needed, too.
        """
        shard = self._shard_of_index.get(sha256, sha256)
        if shard in self.held:
            return -1
        places = self._coming.get(shard)
        return places[0] if places else math.inf

    def _fits(self, shard: Shard) -> bool:
        sizes = [held.shard.bytes for held in self.held.values()]
        return sum(sizes) + shard.bytes <= self._share and len(sizes) < self._most
