"""Tars that can't be indexed (`data.loader: webdataset`), which give up laws that hold for all other data.

There is no fixed order: each process draws tars, again and again, and shuffles their samples in a buffer, as webdataset
does for training. So an epoch is not each sample once, but `train_samples` draws. A resume is not exact: what is drawn
follows from the step at which the reading of an epoch begins and from the process, so after a resume within an epoch,
and at another number of processes, other samples come than would have come. No hash vouches for the bytes.

An evaluation still reads each test sample once, but a process has to read past all those that come before its own.
"""

import hashlib
import json
import random
import sys
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import chain

import torch
from webdataset.filters import shuffle
from webdataset.shardlists import ResampledShards

from dtrain.config import DataConfig
from dtrain.data.cache import FetchStats
from dtrain.data.loader import SampleDecoder
from dtrain.data.order import SampleRefs
from dtrain.data.stream_bytes import expand
from dtrain.data.stream_loader import OnBad, StreamLoader
from dtrain.data.stream_samples import RawSample, read_samples
from shard_tools.errors import UserError
from shard_tools.permutation import derive_key

_PLACES = 4096
"""Places in a virtual shard of the training split, whose order is held in memory."""


class StreamDataset:
    """The tars that the section `data.stream` names."""

    fetched: FetchStats | None = None

    def __init__(self, config: DataConfig) -> None:
        """Raises UserError if the splits are not told apart."""
        assert config.stream is not None
        if config.train_split == config.test_split:
            raise UserError(
                f"data.train_split and data.test_split: expected two names, got {config.test_split!r} twice"
            )
        self._config = config
        self._stream = config.stream
        self._patterns = {config.train_split: "train", config.test_split: "test"}
        self._urls: dict[str, list[str]] = {}
        self._told_of_more = False

    @property
    def digest(self) -> str:
        """SHA-256 of the section `data.stream`, which is all that is known of the samples."""
        return hashlib.sha256(json.dumps(self._stream.model_dump(), sort_keys=True).encode()).hexdigest()

    def lengths(self, split: str) -> list[int]:
        """The samples that the section promises, in virtual shards.

        Raises UserError if there is no such split, or a file of it is missing.
        """
        self._expand(split)
        if split == self._config.test_split:
            return [self._stream.test_samples]
        whole, rest = divmod(self._stream.train_samples, _PLACES)
        return [_PLACES] * whole + [rest] * (rest > 0)

    def loader(self, split: str, *, size: int, device: torch.device) -> StreamLoader:
        """Batches of a split for images of side `size`; in pinned memory where `device` is a GPU."""
        config, urls = self._config, self._expand(split)
        on_bad: OnBad = "raise"
        if config.on_bad_sample == "replace":
            on_bad = "leave out" if split == config.test_split else "next"
        return StreamLoader(
            partial(self._in_order if split == config.test_split else self._drawn, urls),
            SampleDecoder(config.decode, config.background_cache_mb * 2**20),
            size=size,
            threads=config.threads,
            on_bad=on_bad,
            pin_memory=device.type == "cuda",
        )

    def close(self) -> None:
        """Nothing is held between loaders."""

    def _expand(self, split: str) -> list[str]:
        """The URLs of a split, looked at once: what vanishes later is an error of the process that reads it."""
        if split not in self._patterns:
            raise UserError(f"data.stream has no split {split!r}; it has: {', '.join(self._patterns)}")
        if split not in self._urls:
            name = self._patterns[split]
            self._urls[split] = expand(getattr(self._stream, name), f"data.stream.{name}")
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
        self, urls: list[str], places: Sequence[SampleRefs], stopped: threading.Event
    ) -> Generator[RawSample]:
        """The test samples from the first place on."""
        first, promised = int(places[0].sample[0]), self._stream.test_samples
        with closing(self._read(urls, stopped)) as samples:
            for place in range(promised):
                sample = next(samples, None)
                if sample is None:
                    raise UserError(
                        f"data.stream.test: holds {place} samples, but data.stream.test_samples is {promised}; set it "
                        f"to {place}"
                    )
                if place == promised - 1 and next(samples, None) is not None:
                    self._tell_of_more()
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

    def _tell_of_more(self) -> None:
        if not self._told_of_more:
            self._told_of_more = True
            print(
                f"data.stream.test: holds more samples than data.stream.test_samples ({self._stream.test_samples}); "
                "those after them are never evaluated",
                file=sys.stderr,
                flush=True,
            )
