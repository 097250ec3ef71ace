"""Tars that can't be indexed (`data.loader: webdataset`), which give up laws that hold for all other data.

There is no fixed order: each process draws tars, again and again, and shuffles their samples in a buffer, as webdataset
does for training. So an epoch is not each sample once, but `train_samples` draws. A resume is not exact: what is drawn
follows from the step at which the reading of an epoch begins and from the process, so after a resume within an epoch,
and at another number of processes, other samples come than would have come. No hash vouches for the bytes.

An evaluation still reads each sample of a split once, but a process has to read past all those before its own.
"""

import random
import sys
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from webdataset.filters import shuffle
from webdataset.shardlists import ResampledShards

from dtrain.config import DataConfig
from dtrain.data.cache import FetchStats
from dtrain.data.order import SampleRefs
from dtrain.data.rows import SampleDecoder
from dtrain.data.stream_bytes import expand
from dtrain.data.stream_loader import StreamLoader
from dtrain.data.stream_samples import RawSample, read_samples
from shard_tools.errors import UserError
from shard_tools.permutation import derive_key

_PLACES = 4096
"""Places in a virtual shard, whose order is held in memory."""


class _Split(NamedTuple):
    """What `data.stream` says of a split: `pattern` under the key `name`, `samples` under `name`_samples."""

    name: str
    pattern: str
    samples: int


class StreamDataset:
    """The tars that the section `data.stream` names."""

    fetched: FetchStats | None = None
    digest = "unknown"
    """All that is known of the samples stands in the configuration."""

    def __init__(self, config: DataConfig) -> None:
        """Raises UserError if the splits are not told apart."""
        assert config.stream is not None
        if config.train_split == config.test_split:
            raise UserError(
                f"data.train_split and data.test_split: expected two names, got {config.test_split!r} twice"
            )
        stream = config.stream
        self._config = config
        self._stream = stream
        self._splits = {
            config.train_split: _Split("train", stream.train, stream.train_samples),
            config.test_split: _Split("test", stream.test, stream.test_samples),
        }
        self._urls: dict[str, list[str]] = {}
        self._told_of_more: set[str] = set()

    def lengths(self, split: str) -> list[int]:
        """The samples that the section promises, in virtual shards.

        Raises UserError if there is no such split, or a file of it is missing.
        """
        self._expand(split)
        whole, rest = divmod(self._splits[split].samples, _PLACES)
        return [_PLACES] * whole + [rest] * (rest > 0)

    def start(self) -> None:
        """Threads are there at once."""

    def loader(self, split: str, *, size: int, device: torch.device) -> StreamLoader:
        """Batches of a split for images of side `size`; in pinned memory where `device` is a GPU."""
        config, urls = self._config, self._expand(split)
        return StreamLoader(
            SampleDecoder(config.decode, config.background_cache_mb * 2**20),
            drawn=partial(self._drawn, urls),
            in_order=partial(self._in_order, self._splits[split], urls),
            size=size,
            threads=config.workers,
            on_bad_sample=config.on_bad_sample,
            pin_memory=device.type == "cuda",
        )

    def close(self) -> None:
        """Nothing is held between loaders."""

    def _expand(self, split: str) -> list[str]:
        """The URLs of a split, looked at once: what vanishes later is an error of the process that reads it."""
        if split not in self._splits:
            raise UserError(f"data.stream has no split {split!r}; it has: {', '.join(self._splits)}")
        if split not in self._urls:
            name, pattern, _ = self._splits[split]
            self._urls[split] = expand(pattern, f"data.stream.{name}")
        return self._urls[split]

    def _drawn(self, urls: list[str], places: Sequence[SampleRefs], stopped: threading.Event) -> Generator[RawSample]:
        """webdataset's pipeline for training, without an end: others for other places."""
        key = derive_key(
            "stream", *chain.from_iterable((*refs.shard.tolist(), *refs.sample.tolist()) for refs in places)
        )
        tars = ResampledShards(urls, seed=key, deterministic=True)
        with closing(self._read((tar["url"] for tar in tars), stopped)) as samples:
            yield from shuffle(self._stream.shuffle, rng=random.Random(key))(samples)

    def _in_order(
        self, split: _Split, urls: list[str], places: Sequence[SampleRefs], stopped: threading.Event
    ) -> Generator[RawSample]:
        """The samples from the first place on."""
        name, _, promised = split
        first = int(places[0].shard[0]) * _PLACES + int(places[0].sample[0])
        with closing(self._read(urls, stopped)) as samples:
            for place in range(promised):
                sample = next(samples, None)
                if sample is None:
                    raise UserError(
                        f"data.stream.{name}: holds {place} samples, but data.stream.{name}_samples is {promised}; "
                        f"set it to {place}"
                    )
                if place == promised - 1 and next(samples, None) is not None:
                    self._tell_of_more(split)
                if place >= first:
                    yield sample

    def _read(self, urls: Iterable[str], stopped: threading.Event) -> Generator[RawSample]:
        stream = self._stream
        return read_samples(
            urls,
            (stream.bg, stream.fgbg, stream.depth, stream.mask),
            patience_seconds=self._config.patience_seconds,
            stopped=stopped,
        )

    def _tell_of_more(self, split: _Split) -> None:
        name, _, promised = split
        if name not in self._told_of_more:
            self._told_of_more.add(name)
            print(
                f"data.stream.{name}: holds more samples than data.stream.{name}_samples ({promised}); those after "
                "them are never evaluated",
                file=sys.stderr,
                flush=True,
            )
