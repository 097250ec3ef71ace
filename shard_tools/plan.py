"""Which tuple goes into which shard. A pure function of counts and a seed; never reads a tree."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_tools.errors import UserError
from shard_tools.permutation import permutation

MAX_SHARDS = 1_000_000


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard to be: file name without extension, its split, and the indices of its tuples in the source."""

    name: str
    split: str
    indices: NDArray[np.int64]


def plan_shards(splits: Mapping[str, range], *, shard_size: int, seed: int) -> list[PlannedShard]:
    """Shuffle each split and cut it into shards of `shard_size` tuples; the last one of a split may hold fewer.

    Every index of every split is in exactly one shard. Depends on its arguments alone.
    """
    if shard_size < 1:
        raise UserError(f"--shard-size {shard_size}: expected 1 or more")
    shards = []
    for split, indices in splits.items():
        order = indices.start + permutation(len(indices), "pack", split, seed)
        count = -(-len(indices) // shard_size)
        if count > MAX_SHARDS:
            raise UserError(f"--shard-size {shard_size}: {count:,} shards for {split}; at most {MAX_SHARDS:,}")
        shards += [
            PlannedShard(f"{split}-{number:06d}", split, order[number * shard_size : (number + 1) * shard_size])
            for number in range(count)
        ]
    return shards
