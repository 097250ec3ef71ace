"""Whole batches, decoded ahead by threads in an order that they cannot change."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.data.buffers import BatchBuffers
from dtrain.data.decode import DECODERS, BackgroundCache, Decode, Encoded, Pixels, decode_batch, decoded_size
from dtrain.data.order import Indices, Reading, SampleRefs
from dtrain.data.reader import Arena, ShardFiles, ShardReader
from shard_tools.errors import UserError
from shard_tools.layouts import BACKGROUND, COMPONENTS
from shard_tools.manifest import Manifest

CHANNELS = (3, 3, 1, 1)
GIVE_UP_SECONDS = 0.5
READ_AHEAD = 64
"""Samples whose bytes a thread reads before it decodes them."""

OnBadSample = Literal["raise", "replace"]
Others = Callable[[int, int], Iterator[tuple[int, int]]]

Arguments = ParamSpec("Arguments")
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
        """Let go of threads and files."""


class Loader:
    """Reads and decodes batches of one split for one image size.

    With `threads` > 0 that many batches and one more are in flight; with 0 each is decoded when it is asked for.
    The number of threads changes speed and nothing else.
    """

    def __init__(
        self,
        files: ShardFiles,
        manifest: Manifest,
        split: str,
        *,
        size: int,
        threads: int,
        background_cache_bytes: int,
        decode: Decode = "fast",
        on_bad_sample: OnBadSample = "raise",
        pin_memory: bool = False,
    ) -> None:
        self.reader = ShardReader(files, manifest, split, COMPONENTS)
        self._slot = _slot_size(manifest, size) if decode == "fast" else (size, size)
        self._decoder = SampleDecoder(decode, background_cache_bytes)
        self._replace = on_bad_sample == "replace"
        self._ahead = threads + 1
        self._buffers = BatchBuffers(self._ahead + 1, pin_memory=pin_memory)
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None

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
                    pending.append(submit(self._pool, self._load, number, refs, reading.others, ended))
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

    def close(self) -> None:
        """Drop what is in flight and let go of threads and files."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self.reader.close()

    def _load(self, number: int, refs: SampleRefs, others: Others | None, ended: threading.Event) -> HostBatch:
        tensors = self._buffers.take([(len(refs), *self._slot, channels) for channels in CHANNELS])
        arrays = [tensor.numpy() for tensor in tensors]
        keys: list[str] = []
        wrong: dict[int, ValueError] = {}
        for start in range(0, len(refs), READ_AHEAD):
            if ended.is_set():
                raise GaveUpError
            rows = slice(start, start + READ_AHEAD)
            read, found = self._load_rows(refs.shard[rows], refs.sample[rows], [array[rows] for array in arrays])
            keys += read
            wrong |= {start + row: error for row, error in found.items()}
        bad = []
        for row, error in sorted(wrong.items()):
            reason = BadSampleError(self.reader.shard_path(int(refs.shard[row])), keys[row], error)
            if not self._replace:
                raise reason from error
            used = self._load_first(others(number, row), [array[row] for array in arrays]) if others else None
            bad.append(BadSample(keys[row], used, str(reason)))
            keys[row] = keys[row] if used is None else used
        if bad and others is None:
            kept = [row for row in range(len(refs)) if row not in wrong]
            keys, tensors = [keys[row] for row in kept], [tensor[kept] for tensor in tensors]
        bg, fgbg, depth, mask = tensors
        return HostBatch(keys, bg, fgbg, depth, mask, tuple(bad))

    def _load_rows(
        self, shards: Indices, samples: Indices, slots: Sequence[Pixels]
    ) -> tuple[list[str], dict[int, ValueError]]:
        """Read samples, and decode the components of all into the slots; their keys, and what is wrong by row."""
        arena = self._arena
        read = [self.reader.view(*place, arena) for place in zip(shards.tolist(), samples.tolist(), strict=True)]
        wrong = self._decoder.decode_rows([parts for _, parts in read], slots)
        arena.clear()
        return [key for key, _ in read], wrong

    @property
    def _arena(self) -> Arena:
        """This thread's memory for what it reads."""
        if not hasattr(self._own, "arena"):
            self._own.arena = Arena()
        arena: Arena = self._own.arena
        return arena

    def _load_first(self, places: Iterator[tuple[int, int]], slots: Sequence[Pixels]) -> str:
        """Decode the first of these samples that can be; its key."""
        for place in places:
            key, parts = self.reader.view(*place, Arena(), announced=False)
            with suppress(ValueError):
                self._decoder.decode(parts, slots)
                return key
        raise UserError("no sample of a whole global batch can be decoded; build the shards again from whole files")


def submit(
    pool: ThreadPoolExecutor | None,
    function: Callable[Arguments, Result],
    /,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Future[Result]:
    """What the function returns, called by a thread of the pool; at once and in this thread where there is no pool."""
    if pool is not None:
        return pool.submit(function, *args, **kwargs)
    done: Future[Result] = Future()
    done.set_result(function(*args, **kwargs))
    return done


class GaveUpError(Exception):
    """Nobody waits for the batch any more."""


def result(future: Future[Result], give_up: Callable[[], bool]) -> Result:
    """The result once it is there; GaveUpError if it is not and `give_up` says so, which is asked now and then."""
    while True:
        try:
            return future.result(timeout=GIVE_UP_SECONDS)
        except TimeoutError:
            if future.done():
                raise  # it is the function's own
            if give_up():
                raise GaveUpError from None


class SampleDecoder:
    """Decodes whole samples, and each background that they share once. Thread-safe."""

    def __init__(self, decode: Decode, background_cache_bytes: int) -> None:
        self._decode = DECODERS[decode]
        self._backgrounds = BackgroundCache(background_cache_bytes, self._decode)

    def decode(self, parts: Sequence[Encoded], slots: Sequence[Pixels]) -> None:
        """Decode the `COMPONENTS` of a sample into its slots of a batch. Raises ValueError that names the component."""
        for error in self.decode_rows([parts], [slot[np.newaxis] for slot in slots]).values():
            raise error

    def decode_rows(self, rows: Sequence[Sequence[Encoded]], slots: Sequence[Pixels]) -> dict[int, ValueError]:
        """Decode several samples, component by component, into slots (n, H, W, C) each; what is wrong, by row."""
        wrong: dict[int, ValueError] = {}
        for component, images, each in zip(COMPONENTS, zip(*rows, strict=True), slots, strict=True):
            decode = self._backgrounds.decode_into if component == BACKGROUND else self._decode
            for row, error in decode_batch(decode, images, each).items():
                wrong.setdefault(row, ValueError(f"{component} can't be decoded: {error}"))
        return wrong


class BadSampleError(UserError):
    """A sample that can't be decoded."""

    def __init__(self, shard: str, key: str, reason: ValueError) -> None:
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
