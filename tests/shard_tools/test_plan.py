"""Planning loses and doubles nothing, and gives every shard a random part of its split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.plan import plan_shards


@given(train=st.integers(1, 400), test=st.integers(0, 200), shard_size=st.integers(1, 150), seed=st.integers(0, 2**32))
def test_every_tuple_is_in_one_shard_of_its_split(train: int, test: int, shard_size: int, seed: int) -> None:
    splits = {"train": np.arange(train), "test": np.arange(train, train + test)}
    shards = plan_shards(splits, shard_size=shard_size, seed=seed)
    for split, indices in splits.items():
        mine = [shard for shard in shards if shard.split == split]
        packed = np.concatenate([shard.indices for shard in mine]) if mine else np.empty(0, np.int64)
        assert sorted(packed.tolist()) == indices.tolist()
        assert [shard.name for shard in mine] == [f"{split}-{number:06d}" for number in range(len(mine))]
        assert all(len(shard.indices) == shard_size for shard in mine[:-1])
        assert all(1 <= len(shard.indices) <= shard_size for shard in mine)


def test_order_is_pinned() -> None:
    shards = plan_shards({"train": np.arange(6), "test": np.arange(6, 9)}, shard_size=4, seed=0)
    assert {shard.name: shard.indices.tolist() for shard in shards} == {
        "train-000000": [3, 2, 1, 4],
        "train-000001": [5, 0],
        "test-000000": [7, 8, 6],
    }


def test_another_seed_is_another_order() -> None:
    orders = [plan_shards({"train": np.arange(50)}, shard_size=50, seed=seed)[0].indices.tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_shard_size_must_be_positive() -> None:
    with pytest.raises(UserError, match="--shard-size 0: expected 1 or more"):
        plan_shards({"train": np.arange(5)}, shard_size=0, seed=0)


@given(train=st.integers(1, 300), small=st.integers(1, 300), large=st.integers(1, 300), shard_size=st.integers(1, 100))
def test_a_limit_is_a_prefix_of_every_larger_one(train: int, small: int, large: int, shard_size: int) -> None:
    small, large = sorted((min(small, train), min(large, train)))
    splits = {"train": np.arange(train), "test": np.arange(train, train + 5)}

    def order(limit: int | None) -> list[int]:
        shards = plan_shards(splits, shard_size=shard_size, seed=3, limit=limit)
        assert [shard.indices.tolist() for shard in shards if shard.split == "test"] == tests
        return [index for shard in shards if shard.split == "train" for index in shard.indices.tolist()]

    whole_plan = plan_shards(splits, shard_size=shard_size, seed=3)
    tests = [shard.indices.tolist() for shard in whole_plan if shard.split == "test"]
    assert len(order(small)) == small
    assert order(large)[:small] == order(small)
    assert order(None)[:large] == order(large)


def test_a_limit_out_of_range() -> None:
    with pytest.raises(UserError, match="--limit 6: the train split has 5 tuples; expected 1 to 5"):
        plan_shards({"train": np.arange(5)}, shard_size=2, seed=0, limit=6)


def test_backgrounds_of_a_split_are_in_shards_of_their_own() -> None:
    codes = np.array([0, 0, 1, 1, 2, 2, 3], np.int32)
    splits = {"train": np.arange(6), "test": np.arange(5, 7)}
    shards = plan_shards(splits, shard_size=2, seed=0, background_codes=codes)
    held = {shard.name: codes[shard.indices].tolist() for shard in shards if shard.backgrounds}
    assert held == {
        "backgrounds-train-000000": [0, 1],
        "backgrounds-train-000001": [2],
        "backgrounds-test-000000": [2, 3],
    }
    tuples = [shard.indices.tolist() for shard in shards if not shard.backgrounds]
    assert tuples == [shard.indices.tolist() for shard in plan_shards(splits, shard_size=2, seed=0)]


def test_a_split_that_gets_in_the_way_of_backgrounds() -> None:
    splits = {"train": np.arange(2), "backgrounds-train": np.arange(2, 4)}
    with pytest.raises(UserError, match="a split called backgrounds-NAME gets in its way"):
        plan_shards(splits, shard_size=2, seed=0, background_codes=np.zeros(4, np.int32))
