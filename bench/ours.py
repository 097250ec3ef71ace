"""Our loader as the benchmarks use it: the one place that knows its interface."""

from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch

from bench.turns import Epoch
from dtrain.config import DataConfig
from dtrain.data.dataset import open_dataset
from dtrain.data.loader import HostBatch
from dtrain.data.order import EpochOrder, SampleRefs, rows_of_rank, subset_lengths
from shard_tools.manifest import Manifest, open_shards
from shard_tools.samples import read_index


class Ours:
    """Training batches of the shards at a path or URL, decoded for images of side `size`."""

    def __init__(
        self,
        shards: Path | str,
        *,
        size: int,
        workers: int,
        background_cache_mb: int = 64,
        device: torch.device | None = None,
        **data: Any,
    ) -> None:
        """`data` are further keys of the configuration's section of that name."""
        config = DataConfig(manifest=str(shards), workers=workers, background_cache_mb=background_cache_mb, **data)
        self._shards = str(shards)
        self._dataset = open_dataset(config)
        self._lengths = self._dataset.lengths("train")
        self._loader = self._dataset.loader("train", size=size, device=device or torch.device("cpu"))

    def order(self, batch: int, *, epoch: int = 0, samples: int | None = None) -> EpochOrder:
        """The order of one epoch, of all or of the first so many samples."""
        return EpochOrder(subset_lengths(self._lengths, samples), seed=0, stage=0, epoch=epoch, global_batch=batch)

    def batches(self, order: EpochOrder, *, first_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[HostBatch]:
        """What process `rank` of `world` gets from `first_step` to the end of the epoch."""
        return self._loader.batches(order.reading(first_step, [rows_of_rank(order.global_batch, rank, world)]))

    def epochs(self, batch: int) -> Epoch:
        """A function that reads one epoch after the other."""
        numbers = count()
        return lambda: sum(len(found.keys) for found in self.batches(self.order(batch, epoch=next(numbers))))

    def endless(self, batch: int) -> Generator[HostBatch, None, None]:
        """Batches of one epoch after the other."""
        for number in count():
            yield from self.batches(self.order(batch, epoch=number))

    def manifest(self) -> Manifest:
        """What shards.json says."""
        return open_shards(self._shards)[1]

    def places(self, refs: SampleRefs) -> dict[str, list[tuple[int, int]]]:
        """Where the images of some samples lie, from the first byte to behind the last, by the file of their shard."""
        storage, manifest = open_shards(self._shards)
        found: dict[str, list[tuple[int, int]]] = {}
        for number in set(refs.shard.tolist()):
            shard = manifest.split("train").shards[number]
            index = read_index(storage, shard)
            for sample in refs.sample[refs.shard == number].tolist():
                images = [member for member in index[sample].members if member.extension != "json"]
                start, stop = min(m.offset for m in images), max(m.offset + m.size for m in images)
                found.setdefault(shard.file, []).append((start, stop))
        return found

    def shards_of(self, order: EpochOrder, rank: int, world: int) -> list[str]:
        """The files of the shards that process `rank` of `world` has samples in, sorted."""
        reading = order.reading(0, [rows_of_rank(order.global_batch, rank, world)])
        numbers = {number for refs in reading.batches for number in refs.shard.tolist()}
        shards = self.manifest().split("train").shards
        return sorted(shards[number].file for number in numbers)

    def close(self) -> None:
        """Let go of threads and files."""
        self._loader.close()
        self._dataset.close()


def batches_in_flight(workers: int) -> int:
    """How many batches there are at once: each process decodes one, one waits for it, and one is the consumer's."""
    return 2 * workers + 1
