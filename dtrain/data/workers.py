"""Who loads the rows of batches: processes beside the loop, threads, or the loop itself. Knows no shards.

Processes, since two threads lose a tenth and more of their time to each other on the interpreter's lock, and take it
from the training loop besides. They decode into memory that this process sees, too, so no batch is copied between them.
"""

import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from dtrain.data.decode import Decode
from dtrain.data.decode_process import Answer, Channel, Task
from dtrain.data.located import Descriptor, Located
from dtrain.data.rows import Loaded, RowLoader, SampleDecoder, Shape, slots_in
from dtrain.stop_request import SIGNALS
from shard_tools.errors import UserError

WorkerKind = Literal["process", "thread"]

START_SECONDS = 300.0
READY_SECONDS = 0.2
FEWER = "use fewer data.workers, or data.worker_kind thread"

_SIGNALS = {*SIGNALS, signal.SIGUSR2}
"""That launchers and terminals send to whole groups of processes: the trainer decides what they mean."""

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from dtrain.data.decode_process import main; main()"
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class GaveUpError(Exception):
    """Nobody waits for the batch any more."""


class BatchMemory:
    """Memory for the slots of a batch; with a descriptor where other processes can have it, too."""

    def __init__(self, size: int, *, shared: bool) -> None:
        self.descriptor: Descriptor | None = None
        if not shared:
            self.bytes: NDArray[np.uint8] = np.empty(size, dtype=np.uint8)
            return
        try:
            self.descriptor = Descriptor(os.memfd_create("dtrain-batch"))
            os.posix_fallocate(self.descriptor.number, 0, max(size, 1))
            self.bytes = np.frombuffer(mmap.mmap(self.descriptor.number, 0), dtype=np.uint8)
        except OSError as error:
            raise UserError(f"no shared memory for a batch of {size / 1e6:.0f} MB: {error.strerror}; {FEWER}") from None

    @classmethod
    def over(cls, memory: NDArray[np.uint8]) -> "BatchMemory":
        """Memory that is there already."""
        made = cls(0, shared=False)
        made.bytes = memory
        return made

    def __len__(self) -> int:
        return len(self.bytes)


class Slots(NamedTuple):
    """Where samples go: into those slots, of all that `shape` makes of the memory, that begin with number `first`."""

    memory: BatchMemory
    shape: Shape
    first: int


class Workers:
    """Loads as many batches at a time as there are workers; with none, each when it is asked for. Thread-safe.

    Neither their number nor their kind changes what is loaded. Processes need Linux; elsewhere threads stand in.
    """

    def __init__(
        self, count: int, *, decode: Decode, background_cache_bytes: int, kind: WorkerKind = "process"
    ) -> None:
        """Processes are started at once, and the first task of each waits until it is there."""
        processes = count if kind == "process" and hasattr(os, "memfd_create") else 0
        self.ahead = 2 * processes or count + 1
        self.shares_memory = processes > 0
        self._here = RowLoader(SampleDecoder(decode, background_cache_bytes))
        self._pool = ThreadPoolExecutor(2 * processes or count, thread_name_prefix="load") if count else None
        self._memory: weakref.WeakSet[Descriptor] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._processes = _start(processes, decode, background_cache_bytes)
        self._free: SimpleQueue[DecodeProcess] = SimpleQueue()
        for process in self._processes * 2:  # what one loads next waits for it at its door
            self._free.put(process)

    def submit(
        self, function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """What the function returns, called beside the caller; at once and by itself where there are no workers."""
        return submit(self._pool, function, *args, **kwargs)

    def memory(self, size: int) -> BatchMemory:
        """Memory for slots that workers can fill."""
        made = BatchMemory(size, shared=self.shares_memory)
        if made.descriptor is not None:
            with self._lock:
                self._memory.add(made.descriptor)
        return made

    def load(self, located: Located, into: Slots, ended: threading.Event) -> Loaded:
        """Fill slots with samples. To be called by what was submitted.

        Raises UserError if a file can't be read, or a process ended; GaveUpError rather than wait for a process that is
        not there yet, once `ended` is set.
        """
        if into.memory.descriptor is None:
            return self.load_here(located, into)
        with self._lock:
            alive = frozenset(descriptor.inode for descriptor in self._memory)
        process = self._free.get()
        try:
            return process.load(located, into, alive, ended)
        finally:
            self._free.put(process)

    def load_here(self, located: Located, into: Slots) -> Loaded:
        """As `load`, in the caller's thread."""
        mine = slice(into.first, into.first + len(located.wanted.table))
        slots = [each[mine] for each in slots_in(into.memory.bytes, into.shape)]
        return self._here.load(located.wanted, [file.number for file in located.files], slots)

    def close(self) -> None:
        """End all, whatever they are about."""
        for process in self._processes:
            process.kill()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()


class DecodeProcess:
    """A child that loads rows, one task after the other. Thread-safe."""

    def __init__(self, decode: Decode, background_cache_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs, _blocked(_SIGNALS):
            # Not by multiprocessing: its children import the main module, and with it torch. Signals that are blocked
            # here are blocked there for good.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", _PROGRAM),
                    json.dumps([theirs.fileno(), decode, background_cache_bytes]),
                    json.dumps(sys.path),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        self._channel = Channel(ours)
        self._ready = False
        self._known: frozenset[int] = frozenset()
        self._sending, self._receiving = threading.Lock(), threading.Lock()

    def load(self, located: Located, into: Slots, alive: frozenset[int], ended: threading.Event) -> Loaded:
        """As `Workers.load`; `alive` are the inodes of all memory that is in use."""
        try:
            with self._sending:
                self._wait_until_ready(ended)
                self._send(located, into, alive)
                self._receiving.acquire()  # answers come in the order of tasks
            try:
                answer: Answer = self._channel.receive()[0]
            finally:
                self._receiving.release()
        except (EOFError, ConnectionError):
            raise UserError(self._obituary()) from None
        except OSError as error:
            self.kill()  # it may have got half a message
            raise UserError(f"descriptors can't be given to a decoding process: {error.strerror}; {FEWER}") from None
        if answer.fault:
            raise RuntimeError(f"a decoding process failed:\n{answer.fault}")
        if answer.loaded is None:
            raise UserError(answer.error)
        return answer.loaded

    def _wait_until_ready(self, ended: threading.Event) -> None:
        give_up = time.monotonic() + START_SECONDS
        while not self._ready:
            if self._channel.has_message(READY_SECONDS):
                self._channel.receive()
                self._ready = True
            elif ended.is_set():
                raise GaveUpError
            elif time.monotonic() > give_up:
                raise UserError(f"a decoding process was not there after {START_SECONDS:.0f} s; {FEWER}")

    def _send(self, located: Located, into: Slots, alive: frozenset[int]) -> None:
        assert into.memory.descriptor is not None
        tables = located.wanted.tables
        new = replace(located.wanted, tables=[table for table in tables if table.number not in self._known])
        numbers = [table.number for table in tables]
        task = Task(new, numbers, located.alive, alive, into.shape, into.first)
        self._channel.send(task, [into.memory.descriptor.number, *(file.number for file in located.files)])
        self._known = (self._known | set(numbers)) & located.alive

    def kill(self) -> None:
        """End it; whoever waits for it is told."""
        self._process.kill()

    def close(self) -> None:
        """Let go of it, after `kill`."""
        self._process.wait()
        self._channel.close()

    def _obituary(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"a decoding process ended with exit status {code}; what it printed says why"
        name = {number.value: number.name for number in signal.Signals}.get(-code, f"signal {-code}")
        if name == "SIGKILL":
            return f"a decoding process was ended by {name}; if the machine has too little memory, {FEWER}"
        return f"a decoding process was ended by {name}; with data.workers 0 it shows what was decoded then"


def _start(count: int, decode: Decode, background_cache_bytes: int) -> list[DecodeProcess]:
    """Raises UserError if they can't all be started."""
    started: list[DecodeProcess] = []
    try:
        if count:
            _raise_descriptor_limit()
        started.extend(DecodeProcess(decode, background_cache_bytes) for _ in range(count))
    except OSError as error:
        for process in started:
            process.kill()
            process.close()
        raise UserError(f"decoding processes can't be started: {error.strerror}; {FEWER}") from None
    return started


def _raise_descriptor_limit() -> None:
    """To what this process may have: each batch in memory takes some, and a batch may draw from many shards."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
