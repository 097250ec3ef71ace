"""A process that does nothing but read and decode, into memory that it shares with the one that started it.

Each task brings the descriptors of the files and of the memory, so that this process holds no file open between two and
has nothing to lose; it ends when the other end of its socket is closed, however that came about.
"""

import errno
import json
import mmap
import os
import pickle
import select
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtrain.data.rows import Loaded, RowLoader, SampleDecoder, Shape, ShardTable, Wanted, slots_in
from shard_tools.errors import UserError

_LENGTHS = struct.Struct("<QQ")
_MOST_DESCRIPTORS = 200
"""In one piece; the kernel takes 253."""
_SEND_SECONDS = 10.0


class Task(NamedTuple):
    """Rows to load. With it come the descriptors of the memory of their batch and of the files that `wanted` counts."""

    wanted: Wanted
    """Its `tables` are those that this process has not seen yet."""
    tables: list[int]
    """All of them, by their numbers."""
    alive_tables: frozenset[int]
    """Those to keep for other tasks."""
    alive_memory: frozenset[int]
    """The memory that is still in use, by the number of its inode."""
    shape: Shape
    first: int
    """The slot of the first row, of those that `shape` makes of the memory."""


class Answer(NamedTuple):
    """How a task ended; if with an error, it is the user's or our own fault."""

    loaded: Loaded | None
    error: str = ""
    fault: str = ""


class Channel:
    """One end of a socket for messages between a process and its child, which trust each other."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Raises OSError if nobody is there to take it."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.sendall(_LENGTHS.pack(len(data), len(descriptors)))
        for start in range(0, len(descriptors), _MOST_DESCRIPTORS):
            self._send_descriptors(descriptors[start : start + _MOST_DESCRIPTORS])
        self._socket.sendall(data)

    def has_message(self, seconds: float) -> bool:
        """Whether there is something to receive, if only the end, after so many seconds at most."""
        return bool(self._poll(select.POLLIN, round(seconds * 1000)))

    def wait_for_end(self) -> None:
        """Return when the other end is closed."""
        self._poll(0, None)

    def receive(self) -> tuple[Any, list[int]]:
        """A message and descriptors that are the caller's to close. Raises EOFError when the other end is closed."""
        length, count = _LENGTHS.unpack(self._take(_LENGTHS.size))
        descriptors: list[int] = []
        while len(descriptors) < count:
            byte, found, _, _ = socket.recv_fds(self._socket, 1, _MOST_DESCRIPTORS)
            if not byte:
                raise EOFError
            if not found:
                raise OSError("descriptors were lost on the way; this process may have too many open files")
            descriptors += found
        return pickle.loads(self._take(length)), descriptors

    def close(self) -> None:
        """Let the other end know."""
        self._socket.close()

    def _poll(self, events: int, milliseconds: int | None) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._socket, events)
        return poll.poll(milliseconds)

    def _send_descriptors(self, descriptors: Sequence[int]) -> None:
        """The kernel counts those under way of all processes of a user, and may have to deliver some first."""
        give_up = time.monotonic() + _SEND_SECONDS
        while True:
            try:
                socket.send_fds(self._socket, [b"\0"], descriptors)
                return
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS or time.monotonic() > give_up:
                    raise
            time.sleep(0.01)

    def _take(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            arrived = self._socket.recv_into(view)
            if not arrived:
                raise EOFError
            view = view[arrived:]
        return data


class Server:
    """Does the tasks of one parent, and remembers what it may need again."""

    def __init__(self, rows: RowLoader) -> None:
        self._rows = rows
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._tables: dict[int, ShardTable] = {}

    def serve(self, channel: Channel) -> None:
        """Load what is asked for until the other end is closed."""
        with suppress(EOFError, ConnectionError):
            channel.send("ready")
            while True:
                task, descriptors = channel.receive()
                answer = self._answer(task, descriptors)
                for descriptor in descriptors:  # before the parent lets go of the shards, which these hold locked
                    os.close(descriptor)
                channel.send(answer)

    def _answer(self, task: Task, descriptors: list[int]) -> Answer:
        try:
            self._tables |= {table.number: table for table in task.wanted.tables}
            wanted = replace(task.wanted, tables=[self._tables[number] for number in task.tables])
            for number in self._tables.keys() - task.alive_tables:
                del self._tables[number]
            batch, *files = descriptors
            mine = slice(task.first, task.first + len(wanted.table))
            slots = [each[mine] for each in slots_in(self._mapped(batch, task.alive_memory), task.shape)]
            return Answer(self._rows.load(wanted, files, slots))
        except UserError as error:
            return Answer(None, error=str(error))
        except Exception:
            return Answer(None, fault=traceback.format_exc())

    def _mapped(self, descriptor: int, alive: frozenset[int]) -> NDArray[np.uint8]:
        for inode in self._memory.keys() - alive:
            del self._memory[inode]
        inode = os.fstat(descriptor).st_ino
        if inode not in self._memory:
            self._memory[inode] = np.frombuffer(mmap.mmap(descriptor, 0), dtype=np.uint8)
        return self._memory[inode]


def _end_with_parent(channel: Channel) -> None:
    channel.wait_for_end()
    os._exit(0)


def main() -> None:
    """To be started with the descriptor of a socket, and how to decode."""
    descriptor, decode, background_cache_bytes = json.loads(sys.argv[1])
    channel = Channel(socket.socket(fileno=descriptor))
    threading.Thread(target=_end_with_parent, args=(channel,), daemon=True).start()
    Server(RowLoader(SampleDecoder(decode, background_cache_bytes))).serve(channel)
