"""Whole batches, decoded ahead by threads in an order that they cannot change."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.config import DataConfig
from dtrain.data.decode import BackgroundCache, decode_into, decoded_size
from dtrain.data.order import SampleRefs
from dtrain.data.reader import ShardReader
from shard_tools.errors import UserError
from shard_tools.manifest import Manifest

COMPONENTS = ("bg", "fgbg", "depth", "mask")


@dataclass(frozen=True)
class HostBatch:
    """Decoded samples on the host: `bg`, `fgbg` uint8 (B, H, W, 3); `depth`, `mask` uint8 (B, H, W, 1)."""

    keys: list[str]
    bg: Tensor
    fgbg: Tensor
    depth: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """What the network trains on: `images` cat(bg, fgbg) (B, 6, S, S), `depth` and `mask` (B, 1, S, S), in [0, 1]."""

    keys: list[str]
    images: Tensor
    depth: Tensor
    mask: Tensor


class Loader:
    """Reads and decodes batches of one split for one image size.

    With `threads` > 0 that many batches and one more are in flight; with 0 each is decoded when it is asked for.
    The number of threads changes speed and nothing else.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        *,
        size: int,
        threads: int,
        background_cache_bytes: int,
        pin_memory: bool = False,
    ) -> None:
        self.reader = ShardReader(folder, manifest, split, COMPONENTS)
        self._slot = _slot_size(manifest, size)
        self._backgrounds = BackgroundCache(background_cache_bytes)
        self._pin_memory = pin_memory
        self._ahead = threads + 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None

    def batches(self, plan: Iterable[SampleRefs]) -> Iterator[HostBatch]:
        """The batches that `plan` names, in its order.

        Raises UserError that names the shard or the sample when one can't be read or decoded.
        """
        if self._pool is None:
            yield from map(self._load, plan)
            return
        pending: deque[Future[HostBatch]] = deque()
        try:
            for refs in plan:
                pending.append(self._pool.submit(self._load, refs))
                if len(pending) >= self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Drop what is in flight and let go of threads and files."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self.reader.close()

    def _load(self, refs: SampleRefs) -> HostBatch:
        keys: list[str] = []
        height, width = self._slot
        tensors = [
            torch.empty((len(refs), height, width, channels), dtype=torch.uint8, pin_memory=self._pin_memory)
            for channels in (3, 3, 1, 1)
        ]
        arrays = [tensor.numpy() for tensor in tensors]
        for row, (shard, sample) in enumerate(zip(refs.shard.tolist(), refs.sample.tolist(), strict=True)):
            key, parts = self.reader.read(shard, sample)
            for component, data, slots in zip(COMPONENTS, parts, arrays, strict=True):
                decode = self._backgrounds.decode_into if component == "bg" else decode_into
                try:
                    decode(data, slots[row])
                except ValueError as error:
                    raise UserError(
                        f"{self.reader.shard_path(shard)}: sample {key!r}: {component} can't be decoded: {error}; "
                        "build the shards again from whole files"
                    ) from error
            keys.append(key)
        return HostBatch(keys, *tensors)


def make_loader(
    config: DataConfig, folder: Path, manifest: Manifest, split: str, *, size: int, device: torch.device
) -> Loader:
    """The loader that a configuration asks for, with batches in pinned memory where `device` is a GPU."""
    return Loader(
        folder,
        manifest,
        split,
        size=size,
        threads=config.threads,
        background_cache_bytes=config.background_cache_mb * 2**20,
        pin_memory=device.type == "cuda",
    )


def to_device(batch: HostBatch, device: torch.device, size: int) -> Batch:
    """Move a batch to `device` as bytes, and only there make it float in [0, 1], channels-last, of side `size`."""

    def prepare(tensor: Tensor) -> Tensor:
        moved = tensor.to(device, non_blocking=True).permute(0, 3, 1, 2)
        values = moved.to(torch.float32) / 255
        if values.shape[-2:] != (size, size):
            values = F.interpolate(values, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
        return values

    images = torch.cat([prepare(batch.bg), prepare(batch.fgbg)], dim=1)
    return Batch(
        batch.keys,
        images.contiguous(memory_format=torch.channels_last),
        prepare(batch.depth).contiguous(),
        prepare(batch.mask).contiguous(),
    )


def _slot_size(manifest: Manifest, size: int) -> tuple[int, int]:
    """(height, width) of decoded images: scaled from the native size where all samples share one, else `size`."""
    natives = {manifest.component(name).size for name in COMPONENTS}
    if len(natives) != 1 or None in natives:
        return size, size
    width, height = next(native for native in natives if native is not None)
    return decoded_size((height, width), size)
