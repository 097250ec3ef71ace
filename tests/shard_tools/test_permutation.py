"""The permutation is one, and it is the same one for ever: runs and shards made years ago depend on it."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.permutation import derive_key, hash_range, permutation


def test_golden_values() -> None:
    assert permutation(10, "pack", "train", 0).tolist() == [7, 3, 6, 2, 1, 4, 5, 9, 0, 8]
    assert permutation(10, "pack", "test", 0).tolist() == [1, 8, 2, 9, 0, 3, 4, 6, 7, 5]
    assert permutation(10, "pack", "train", 1).tolist() == [0, 3, 5, 9, 4, 2, 6, 1, 8, 7]
    large = permutation(100_000, "pack", "train", 0).astype("<i8").tobytes()
    assert hashlib.sha256(large).hexdigest() == "106a3d38eb050ccaeca732c026051356e772b62ef382c055cbe99ad13fd28f60"


def test_golden_keys() -> None:
    assert derive_key() == 13020603013274838756
    assert derive_key(1) == 15854998268200131065
    assert derive_key("1") == 6569554321575594631


def test_hash_is_splitmix64() -> None:
    """The reference outputs of SplitMix64 for the seed 0."""
    assert [int(value) for value in hash_range(3, 0)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_numpy_integers_count_as_integers() -> None:
    assert derive_key(np.int64(3), "a") == derive_key(3, "a")


@given(count=st.integers(0, 3000), seed=st.integers(0, 2**64), name=st.text(max_size=8))
def test_is_a_permutation(count: int, seed: int, name: str) -> None:
    order = permutation(count, name, seed)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, permutation(count, name, seed))
