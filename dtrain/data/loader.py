"""Whole batches, decoded ahead by workers in an order that they cannot change."""

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.data.buffers import BatchBuffers, tensors_in
from dtrain.data.decode import Decode, decoded_size
from dtrain.data.order import Reading, SampleRefs
from dtrain.data.reader import ShardFiles, ShardReader
from dtrain.data.rows import CHANNELS, Shape, bytes_of
from dtrain.data.workers import BatchMemory, GaveUpError, Slots, Workers
from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError
from shard_tools.manifest import Manifest

GIVE_UP_SECONDS = 0.5
TASK_PIXELS = 2**22
"""What a worker is given at a time, before it is asked whether anybody still waits for it: some 25 ms of work."""

OnBadSample = Literal["raise", "replace"]
Others = Callable[[int, int], Iterator[tuple[int, int]]]

Result = TypeVar("Result")


@dataclass(frozen=True)
class BadSample:
    """A sample that can't be decoded, and the key of the one that is used instead; None: left out."""

    key: str
    used: str | None
    reason: str


@dataclass(frozen=True)
class HostBatch:
    """Decoded samples on the host: `bg`, `fgbg` uint8 (B, H, W, 3); `depth`, `mask` uint8 (B, H, W, 1)."""

    keys: list[str]
    bg: Tensor
    fgbg: Tensor
    depth: Tensor
    mask: Tensor
    bad: tuple[BadSample, ...] = ()


@dataclass(frozen=True)
class Batch:
    """What the network trains on: `images` cat(bg, fgbg) (B, 6, S, S), `depth` and `mask` (B, 1, S, S), in [0, 1]."""

    keys: list[str]
    images: Tensor
    depth: Tensor
    mask: Tensor


class BatchSource(Protocol):
    """What the trainer takes batches from."""

    def batches(self, reading: Reading, give_up: Callable[[], bool] = lambda: False) -> Generator[HostBatch]:
        """The batches of `reading`, in its order; raises GaveUpError rather than wait on, once `give_up` says so."""

    def close(self) -> None:
        """Let go of files, and of threads that are its own."""


class Loader:
    """Reads and decodes batches of one split for one image size.

    Some batches more than there are workers are in flight; without any, each is decoded when it is asked for.
    """

    def __init__(
        self,
        files: ShardFiles,
        manifest: Manifest,
        split: str,
        workers: Workers,
        *,
        size: int,
        decode: Decode = "fast",
        on_bad_sample: OnBadSample = "raise",
        pin_memory: bool = False,
    ) -> None:
        """`workers` outlive the loader, and decode as `decode` says."""
        self.reader = ShardReader(files, manifest, split, COMPONENTS)
        self._workers = workers
        self._slot = _slot_size(manifest, size) if decode == "fast" else (size, size)
        self._replace = on_bad_sample == "replace"
        self._pins_copies = pin_memory and workers.shares_memory
        self._ahead = workers.ahead
        pins_at_once = pin_memory and not workers.shares_memory
        self._buffers = BatchBuffers(self._ahead + 1, workers.memory, pin_memory=pins_at_once)

    def batches(self, reading: Reading, give_up: Callable[[], bool] = lambda: False) -> Generator[HostBatch]:
        """The batches of `reading`, in its order.

        Raises GaveUpError if a batch is not there yet and `give_up` says so, and UserError that names the shard or the
        sample when one can't be read or decoded. With `on_bad_sample` "replace", a sample that can't be decoded is
        replaced by another one of its global batch, or left out where `reading` knows of no others; a shard that
        can't be read is an error all the same.
        """
        pending: deque[Future[HostBatch]] = deque()
        asked = enumerate(reading.batches)
        ended = threading.Event()
        self.reader.begin(reading.spans, ahead=self._ahead)
        try:
            for passed in itertools.count():
                for number, refs in itertools.islice(asked, self._ahead - len(pending)):
                    pending.append(self._workers.submit(self._load, number, refs, reading.others, ended))
                if not pending:
                    return
                batch = result(pending[0], give_up)
                pending.popleft()
                self.reader.passed(passed)
                yield batch
        finally:
            ended.set()
            running = [future for future in pending if not future.cancel()]
            self.reader.end()
            wait(running)
            pending.clear()
            running.clear()

    def close(self) -> None:
        """Let go of files; the workers go on."""
        self.reader.close()

    def _load(self, number: int, refs: SampleRefs, others: Others | None, ended: threading.Event) -> HostBatch:
        shape = (len(refs), *self._slot)
        memory, whole = self._buffers.take(bytes_of(shape))
        keys, wrong = self._load_rows(refs, memory, shape, ended)
        bad = []
        for row, reason in sorted(wrong.items()):
            problem = BadSampleError(self.reader.shard_path(int(refs.shard[row])), keys[row], reason)
            if not self._replace:
                raise problem
            used = self._load_first(others(number, row), memory, shape, row) if others else None
            bad.append(BadSample(keys[row], used, str(problem)))
            keys[row] = keys[row] if used is None else used
        tensors = tensors_in(whole, shape)
        if bad and others is None:
            kept = [row for row in range(len(refs)) if row not in wrong]
            keys, tensors = [keys[row] for row in kept], [tensor[kept] for tensor in tensors]
        if self._pins_copies:
            tensors = [tensor.pin_memory() for tensor in tensors]
        bg, fgbg, depth, mask = tensors
        return HostBatch(keys, bg, fgbg, depth, mask, tuple(bad))

    def _load_rows(
        self, refs: SampleRefs, memory: BatchMemory, shape: Shape, ended: threading.Event
    ) -> tuple[list[str], dict[int, str]]:
        """Fill all rows that can be decoded; the keys of all, and what is wrong with the others."""
        keys: list[str] = []
        wrong: dict[int, str] = {}
        most = max(TASK_PIXELS // math.prod(self._slot), 1)
        for start in range(0, len(refs), most):
            if ended.is_set():
                raise GaveUpError
            rows = slice(start, start + most)
            located = self.reader.locate(refs.shard[rows], refs.sample[rows])
            loaded = self._workers.load(located, Slots(memory, shape, start), ended)
            keys += loaded.keys
            wrong |= {start + row: reason for row, reason in loaded.wrong.items()}
        return keys, wrong

    def _load_first(self, places: Iterator[tuple[int, int]], memory: BatchMemory, shape: Shape, row: int) -> str:
        """Fill a row with the first of these samples that can be decoded; its key."""
        for shard, sample in places:
            located = self.reader.locate(np.array([shard]), np.array([sample]), announced=False)
            if not self._workers.load_here(located, Slots(memory, shape, row)).wrong:
                return located.wanted.keys()[0]
        raise UserError("no sample of a whole global batch can be decoded; build the shards again from whole files")


def result(future: Future[Result], give_up: Callable[[], bool]) -> Result:
    """The result once it is there; GaveUpError if it is not and `give_up` says so, which is asked now and then."""
    try:
        while True:
            try:
                return future.result(timeout=GIVE_UP_SECONDS)
            except TimeoutError:
                if future.done():
                    raise  # it is the function's own
                if give_up():
                    raise GaveUpError from None
    finally:
        del future  # or what it raised would hold on to it, and both to all that is open there


class BadSampleError(UserError):
    """A sample that can't be decoded."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(
            f"{shard}: sample {key!r}: {reason}; build the shards again from whole files, or let other samples stand "
            "in for such ones: --data.on_bad_sample replace"
        )
        self.key = key


def blank_batch(rows: int, size: int) -> HostBatch:
    """Black images of side `size`, for a process that has none of its own but still takes part in a step."""
    bg, fgbg, depth, mask = (torch.zeros((rows, size, size, channels), dtype=torch.uint8) for channels in CHANNELS)
    return HostBatch([""] * rows, bg, fgbg, depth, mask)


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
