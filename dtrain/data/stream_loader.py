"""Whole batches of samples that come in one stream: a thread reads ahead, others decode. Knows nothing of tars."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

from torch import Tensor

from dtrain.data.buffers import BatchBuffers, tensors_in
from dtrain.data.decode import Pixels
from dtrain.data.loader import BadSample, BadSampleError, HostBatch, OnBadSample, result
from dtrain.data.order import Reading, SampleRefs
from dtrain.data.rows import SampleDecoder, bytes_of
from dtrain.data.stream_samples import RawSample
from dtrain.data.workers import BatchMemory, submit
from shard_tools.errors import UserError

MAX_BAD_IN_A_ROW = 100

_FIRST_BATCHES = 8

Source = Callable[[Sequence[SampleRefs], threading.Event], Generator[RawSample]]
"""From the places of the first few batches, the samples for those and all later ones; ends soon after the event."""


class StreamLoader:
    """Reads and decodes batches of one stream for one image size, of one `Reading` at a time.

    With `threads` > 0 that many batches and one more are in flight; with 0 each is read and decoded when it is asked
    for. The number of threads changes speed, and which samples stand in for bad ones.
    """

    def __init__(
        self,
        decoder: SampleDecoder,
        *,
        drawn: Source,
        in_order: Source,
        size: int,
        threads: int,
        on_bad_sample: OnBadSample = "raise",
        pin_memory: bool = False,
    ) -> None:
        self._drawn = drawn
        self._in_order = in_order
        self._decoder = decoder
        self._size = size
        self._replace = on_bad_sample == "replace"
        self._ahead = threads + 1
        allocate = partial(BatchMemory, shared=False)
        self._buffers = BatchBuffers(self._ahead + 1, allocate, pin_memory=pin_memory)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read") if threads else None
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._current: Generator[HostBatch] | None = None

    def batches(self, reading: Reading, give_up: Callable[[], bool] = lambda: False) -> Generator[HostBatch]:
        """For each batch of `reading` one of as many samples: drawn ones, or, where it knows of no others, in order.

        With `on_bad_sample` "replace", the next one that is drawn is used instead of a sample that can't be decoded;
        in order it is left out. Ends what was begun before. Raises GaveUpError as `Loader` does, and UserError that
        names the tar or the sample when one can't be read or decoded.
        """
        self._end()
        self._current = self._batches(reading, give_up)
        return self._current

    def close(self) -> None:
        """Drop what is in flight and let go of threads and files."""
        self._end()
        for pool in (self._reading, self._decoding):
            if pool is not None:
                pool.shutdown()

    def _end(self) -> None:
        if self._current is not None:
            self._current.close()

    def _batches(self, reading: Reading, give_up: Callable[[], bool]) -> Generator[HostBatch]:
        places = iter(reading.batches)
        first = list(islice(places, _FIRST_BATCHES))
        if not first:
            return
        wanted = chain(first, places)
        drawn = reading.others is not None
        stream = _Stream(self._drawn if drawn else self._in_order, first)
        pending: deque[tuple[Future[list[RawSample]], Future[_Decoded]]] = deque()
        try:
            while True:
                for refs in islice(wanted, self._ahead - len(pending)):
                    raw = submit(self._reading, stream.take, len(refs))
                    pending.append((raw, submit(self._decoding, self._decode, raw)))
                if not pending:
                    return
                decoded = result(pending[0][1], give_up)
                pending.popleft()
                yield self._finish(decoded, stream if drawn else None)
        finally:
            stream.stop()
            running: list[Future[Any]] = [each for both in pending for each in both if not each.cancel()]
            wait(running)
            stream.close()

    def _decode(self, raw: "Future[list[RawSample]]") -> "_Decoded":
        """Fill the first rows of a batch with the samples that can be decoded."""
        samples = raw.result()
        shape = (len(samples), self._size, self._size)
        batch = _Decoded(tensors_in(self._buffers.take(bytes_of(shape)).tensor, shape))
        for sample in samples:
            try:
                self._add(sample, batch)
            except BadSampleError as error:
                if not self._replace:
                    raise
                batch.bad.append(error)
        return batch

    def _finish(self, batch: "_Decoded", stream: "_Stream | None") -> HostBatch:
        """Fill the rows that are left from the stream, or cut them off."""
        bad: list[BadSample] = []
        for error in batch.bad:
            tried = [error]
            used = self._add_next(stream, batch, tried) if stream else None
            bad += [BadSample(each.key, used, str(each)) for each in tried]
        bg, fgbg, depth, mask = (tensor[: len(batch.keys)] for tensor in batch.tensors)
        return HostBatch(batch.keys, bg, fgbg, depth, mask, tuple(bad))

    def _add_next(self, stream: "_Stream", batch: "_Decoded", tried: list[BadSampleError]) -> str:
        """Add the next sample of the stream that can be decoded; those that can't are added to `tried`."""
        while len(tried) < MAX_BAD_IN_A_ROW:
            (sample,) = submit(self._reading, stream.take, 1).result()
            try:
                self._add(sample, batch)
            except BadSampleError as error:
                tried.append(error)
            else:
                return sample.key
        raise UserError(f"{MAX_BAD_IN_A_ROW} samples in a row can't be decoded; the last one: {tried[-1]}")

    def _add(self, sample: RawSample, batch: "_Decoded") -> None:
        try:
            self._decoder.decode(sample.parts, batch.next_slots())
        except ValueError as error:
            raise BadSampleError(sample.url, sample.key, str(error)) from error
        batch.keys.append(sample.key)


@dataclass
class _Decoded:
    """A batch whose first rows are filled, one for each key."""

    tensors: list[Tensor]
    keys: list[str] = field(default_factory=list)
    bad: list[BadSampleError] = field(default_factory=list)

    def next_slots(self) -> list[Pixels]:
        return [tensor[len(self.keys)].numpy() for tensor in self.tensors]


class _Stream:
    """The samples of a source. An error comes again whenever more is taken, so that none can be overlooked."""

    def __init__(self, source: Source, places: Sequence[SampleRefs]) -> None:
        self._stopped = threading.Event()
        self._samples = source(places, self._stopped)
        self._error: Exception | None = None

    def take(self, count: int) -> list[RawSample]:
        """The next samples, to be called by one thread at a time. Raises what reading them raises."""
        if self._error is not None:
            raise self._error
        try:
            return [next(self._samples) for _ in range(count)]
        except Exception as error:
            self._error = error
            raise

    def stop(self) -> None:
        """Let a `take` that is under way in another thread end soon."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of files."""
        self._samples.close()
