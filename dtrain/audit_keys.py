"""The keys of samples as 64-bit hashes, so that those of millions fit into memory. Never looks at images."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from dtrain.data.order import SampleRefs
from shard_tools.manifest import Shard
from shard_tools.samples import read_index
from shard_tools.storage import Storage

MOST_NAMES = 3

Hashes = NDArray[np.uint64]


def hash_keys(keys: Sequence[str]) -> Hashes:
    """64 bits of the BLAKE2b hash of each key, shape (n,)."""
    return np.frombuffer(b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys), dtype="<u8")


class SampleTable:
    """The keys of samples in packing order: in memory as hashes, by name from the indexes again."""

    def __init__(self, storage: Storage, shards: Sequence[Shard]) -> None:
        self._storage = storage
        self._shards = shards
        self._starts = np.cumsum([0, *(shard.samples for shard in shards)])
        self.hashes: Hashes = np.concatenate(
            [hash_keys([sample.key for sample in read_index(storage, shard)]) for shard in shards]
        )

    def hashes_at(self, refs: SampleRefs) -> Hashes:
        """Hashes of the keys of `refs`, shape (n,)."""
        found: Hashes = self.hashes[self._starts[refs.shard] + refs.sample]
        return found

    def key_at(self, refs: SampleRefs, row: int) -> str:
        """The key of one of `refs`."""
        return read_index(self._storage, self._shards[int(refs.shard[row])])[int(refs.sample[row])].key

    def names(self, hashes: Hashes) -> str:
        """The first of the keys with these hashes, for messages."""
        places = np.flatnonzero(np.isin(self.hashes, hashes))[:MOST_NAMES]
        shard = np.searchsorted(self._starts, places, side="right") - 1
        refs = SampleRefs(shard, places - self._starts[shard])
        keys = ", ".join(repr(self.key_at(refs, row)) for row in range(len(refs)))
        return keys + (", …" if len(hashes) > MOST_NAMES else "")
