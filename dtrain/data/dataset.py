"""What a configuration names as its data: how many samples there are, and loaders for them. Never reads a sample."""

import os
from typing import Protocol

import torch

from dtrain.config import DataConfig
from dtrain.data.cache import FetchStats, ShardCache
from dtrain.data.cache_files import default_bytes, default_folder
from dtrain.data.loader import BatchSource, Loader
from dtrain.data.reader import LocalFiles, ShardFiles
from dtrain.data.workers import Workers
from shard_tools.manifest import open_shards
from shard_tools.storage import LocalStorage, RemoteStorage


class Dataset(Protocol):
    """What the trainer and the evaluation ask of the data."""

    @property
    def digest(self) -> str:
        """Decides the samples; a run goes on only with the same."""

    @property
    def fetched(self) -> FetchStats | None:
        """What came over the network so far; None if nothing has to."""

    def lengths(self, split: str) -> list[int]:
        """Samples in each shard of a split. Raises UserError if there is no such split."""

    def start(self) -> object:
        """Begin what takes a moment until it is there, for the loaders that are to come."""

    def loader(self, split: str, *, size: int, device: torch.device) -> BatchSource:
        """Batches of a split for images of side `size`; in pinned memory where `device` is a GPU."""

    def close(self) -> None:
        """Let go of threads and files."""


class ShardDataset:
    """Indexed shards with a manifest: in a folder, or behind a URL and then through the node's cache."""

    def __init__(self, config: DataConfig) -> None:
        """Reads the manifest. Raises UserError if it can't."""
        self._config = config
        storage, self._manifest = open_shards(config.manifest)
        self._cache: ShardCache | None = None
        if isinstance(storage, RemoteStorage):
            self._cache = _open_cache(config, storage)
            self._files: ShardFiles = self._cache
        else:
            assert isinstance(storage, LocalStorage)
            self._files = LocalFiles(storage)
        self._started: Workers | None = None

    @property
    def digest(self) -> str:
        return self._manifest.digest()

    @property
    def fetched(self) -> FetchStats | None:
        return self._cache.stats if self._cache else None

    def lengths(self, split: str) -> list[int]:
        return [shard.samples for shard in self._manifest.split(split).shards]

    def loader(self, split: str, *, size: int, device: torch.device) -> Loader:
        config = self._config
        return Loader(
            self._files,
            self._manifest,
            split,
            self.start(),
            size=size,
            decode=config.decode,
            on_bad_sample=config.on_bad_sample,
            pin_memory=device.type == "cuda",
        )

    def start(self) -> Workers:
        if self._started is None:
            self._started = Workers(
                self._config.workers,
                kind=self._config.worker_kind,
                decode=self._config.decode,
                background_cache_bytes=self._config.background_cache_mb * 2**20,
            )
        return self._started

    def close(self) -> None:
        if self._started is not None:
            self._started.close()
        self._files.close()


def _open_cache(config: DataConfig, storage: RemoteStorage) -> ShardCache:
    folder = config.cache_dir or default_folder()
    return ShardCache(
        storage,
        folder,
        max_bytes=default_bytes(folder) if config.cache_size is None else config.cache_size,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        spare=config.on_bad_sample == "replace",
        connections=config.connections,
        patience_seconds=config.patience_seconds,
    )


def open_dataset(config: DataConfig) -> Dataset:
    """The data that `config` names. Raises UserError if it can't be opened."""
    if config.loader == "webdataset":
        from dtrain.data.stream import StreamDataset

        return StreamDataset(config)
    return ShardDataset(config)
