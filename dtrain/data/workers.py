"""Who loads the rows of batches: processes beside the loop, threads, or the loop itself. Knows no shards.

Processes, since two threads lose a tenth and more of their time to each other on the interpreter's lock, and take it
from the training loop besides. They decode into memory that this process sees, too, so no batch is ever copied.
"""

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from dtrain.data.decode import Decode
from dtrain.data.decode_process import Answer, Channel, Task
from dtrain.data.located import Descriptor, Located
from dtrain.data.rows import Loaded, RowLoader, SampleDecoder, Shape, slots_in
from shard_tools.errors import UserError

WorkerKind = Literal["process", "thread"]

START_SECONDS = 60.0

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""That launchers and terminals send to whole groups of processes: the trainer decides what they mean."""

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from dtrain.data.decode_process import main; main()"
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class BatchMemory:
    """Memory for the slots of a batch; with a descriptor where other processes can have it, too."""

    def __init__(self, size: int, *, shared: bool) -> None:
        self.descriptor: Descriptor | None = None
        if not shared:
            self.bytes: NDArray[np.uint8] = np.empty(size, dtype=np.uint8)
            return
        self.descriptor = Descriptor(os.memfd_create("dtrain-batch"))
        try:
            os.posix_fallocate(self.descriptor.number, 0, size)
        except OSError as error:
            raise UserError(
                f"no memory for a batch of {size / 1e6:.0f} MB: {error.strerror}; use fewer data.workers"
            ) from None
        self.bytes = np.frombuffer(mmap.mmap(self.descriptor.number, size), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.bytes)


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
        self._processes = [DecodeProcess(decode, background_cache_bytes) for _ in range(processes)]
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

    def load(self, located: Located, memory: BatchMemory, shape: Shape, first: int) -> Loaded:
        """Fill the slots from the one with number `first` on.

        To be called by what was submitted. Raises UserError if a file can't be read, or a process ended.
        """
        if memory.descriptor is None:
            return self.load_here(located, memory, shape, first)
        with self._lock:
            alive = frozenset(descriptor.inode for descriptor in self._memory)
        process = self._free.get()
        try:
            return process.load(located, memory.descriptor, alive, shape, first)
        finally:
            self._free.put(process)

    def load_here(self, located: Located, memory: BatchMemory, shape: Shape, first: int) -> Loaded:
        """As `load`, in the caller's thread."""
        mine = slice(first, first + len(located.wanted.table))
        slots = [each[mine] for each in slots_in(memory.bytes, shape)]
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
                    *(sys.executable, "-c", _PROGRAM),
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

    def load(self, located: Located, memory: Descriptor, alive: frozenset[int], shape: Shape, first: int) -> Loaded:
        """Have samples loaded into memory. Raises UserError if a file can't be read, or the process ended."""
        try:
            with self._sending:
                self._send(located, memory, alive, shape, first)
                self._receiving.acquire()  # answers come in the order of tasks
            try:
                answer: Answer = self._channel.receive()[0]
            finally:
                self._receiving.release()
        except (EOFError, ConnectionError):
            raise UserError(self._obituary()) from None
        except TimeoutError:
            raise UserError(
                f"a decoding process was not there after {START_SECONDS:.0f} s; start again, or use fewer data.workers"
            ) from None
        if answer.fault:
            raise RuntimeError(f"a decoding process failed:\n{answer.fault}")
        if answer.loaded is None:
            raise UserError(answer.error)
        return answer.loaded

    def _send(self, located: Located, memory: Descriptor, alive: frozenset[int], shape: Shape, first: int) -> None:
        if not self._ready:
            self._channel.receive(START_SECONDS)
            self._ready = True
        tables = located.wanted.tables
        new = replace(located.wanted, tables=[table for table in tables if table.number not in self._known])
        numbers = [table.number for table in tables]
        self._channel.send(
            Task(new, numbers, located.alive, alive, shape, first),
            [memory.number, *(file.number for file in located.files)],
        )
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
        name = signal.Signals(-code).name
        return (
            f"a decoding process was ended by {name}; if the machine has too little memory, use fewer data.workers, or "
            "data.worker_kind thread"
        )


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
