"""Seeded permutations that never change: not with the NumPy version, the platform or the number of processes.

`numpy.random.Generator` may change its stream between releases (NEP 19), which would break a run that is resumed
after an upgrade. Here a permutation is the stable sort of hashed indices, which is defined by this file alone.
"""

import hashlib
import operator
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: SupportsIndex | str) -> int:
    """Reduce any sequence of integers and strings to a 64-bit key; different sequences give different keys."""
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{operator.index(part)}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_range(count: int, key: int) -> NDArray[np.uint64]:
    """The first `count` outputs of SplitMix64 seeded with `key`, shape (count,).

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def permutation(count: int, *parts: SupportsIndex | str) -> NDArray[np.int64]:
    """A permutation of range(count), shape (count,), that depends on `count` and `parts` alone."""
    return np.argsort(hash_range(count, derive_key(*parts)), kind="stable").astype(np.int64, copy=False)
