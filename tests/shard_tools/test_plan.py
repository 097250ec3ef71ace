"""Planning loses and doubles nothing, and gives every shard a random part of its split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.plan import plan_shards


@given(train=st.integers(1, 400), test=st.integers(0, 200), shard_size=st.integers(1, 150), seed=st.integers(0, 2**32))
def test_every_tuple_is_in_one_shard_of_its_split(train: int, test: int, shard_size: int, seed: int) -> None:
    splits = {"train": range(train), "test": range(train, train + test)}
    shards = plan_shards(splits, shard_size=shard_size, seed=seed)
    for split, indices in splits.items():
        mine = [shard for shard in shards if shard.split == split]
        packed = np.concatenate([shard.indices for shard in mine]) if mine else np.empty(0, np.int64)
        assert sorted(packed.tolist()) == list(indices)
        assert [shard.name for shard in mine] == [f"{split}-{number:06d}" for number in range(len(mine))]
        assert all(len(shard.indices) == shard_size for shard in mine[:-1])
        assert all(1 <= len(shard.indices) <= shard_size for shard in mine)


def test_order_is_pinned() -> None:
    shards = plan_shards({"train": range(6), "test": range(6, 9)}, shard_size=4, seed=0)
    assert {shard.name: shard.indices.tolist() for shard in shards} == {
        "train-000000": [3, 2, 1, 4],
        "train-000001": [5, 0],
        "test-000000": [7, 8, 6],
    }


def test_another_seed_is_another_order() -> None:
    orders = [plan_shards({"train": range(50)}, shard_size=50, seed=seed)[0].indices.tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_shard_size_must_be_positive() -> None:
    with pytest.raises(UserError, match="--shard-size 0: expected 1 or more"):
        plan_shards({"train": range(5)}, shard_size=0, seed=0)
