"""Which tuple goes into which shard. A pure function of indices, groups and a seed; never reads a source."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_tools.errors import UserError
from shard_tools.permutation import permutation

MAX_SHARDS = 1_000_000
LIMITED_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard to be: file name without extension, its split, and the places of its tuples in the source.

    Where `backgrounds` is true it holds, instead of those tuples, the background of each, and no two share one.
    """

    name: str
    split: str
    indices: NDArray[np.int64]
    backgrounds: bool = False


def plan_shards(
    splits: Mapping[str, NDArray[np.int64]],
    *,
    shard_size: int,
    seed: int,
    limit: int | None = None,
    background_codes: NDArray[np.int32] | None = None,
) -> list[PlannedShard]:
    """Shuffle each split and cut it into shards of `shard_size` tuples; the last one of a split may hold fewer.

    Every index of every split is in exactly one shard, in an order that depends on the arguments alone. `limit` keeps
    the first so many tuples of the training split, in packing order: the same subset every time, and a prefix of every
    larger one. With `background_codes`, (tuples,), each split also gets shards of its distinct backgrounds.
    """
    if shard_size < 1:
        raise UserError(f"--shard-size {shard_size}: expected 1 or more")
    if limit is not None and not 1 <= limit <= len(splits.get(LIMITED_SPLIT, ())):
        count = len(splits.get(LIMITED_SPLIT, ()))
        raise UserError(f"--limit {limit}: the {LIMITED_SPLIT} split has {count} tuples; expected 1 to {count}")
    shards = []
    for split, indices in splits.items():
        order = indices[permutation(len(indices), "pack", split, seed)]
        if split == LIMITED_SPLIT:
            order = order[:limit]
        shards += _cut(split, order, shard_size)
        if background_codes is not None:
            _, first = np.unique(background_codes[order], return_index=True)
            shards += _cut(split, order[first], shard_size, backgrounds=True)
    names = [shard.name for shard in shards]
    if len(set(names)) != len(names):
        raise UserError("--backgrounds shared: a split called backgrounds-NAME gets in its way; rename the split")
    return shards


def _cut(split: str, order: NDArray[np.int64], shard_size: int, *, backgrounds: bool = False) -> list[PlannedShard]:
    count = -(-len(order) // shard_size)
    if count > MAX_SHARDS:
        raise UserError(f"--shard-size {shard_size}: {count:,} shards for {split}; at most {MAX_SHARDS:,}")
    stem = f"backgrounds-{split}" if backgrounds else split
    return [
        PlannedShard(f"{stem}-{number:06d}", split, order[number * shard_size : (number + 1) * shard_size], backgrounds)
        for number in range(count)
    ]
