"""How fast the decoder alone is: a plain loop over bytes in memory, backgrounds left out, as they are cached.

Each tuple is three calls of simplejpeg, at the DCT scale that covers the size asked for, into the same three buffers.
Reads no shard while it is measured, makes no batch, and has nothing beside it.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from bench.dataset import encoded_samples
from bench.turns import Epoch

COLORSPACES = (("fgbg", "RGB"), ("depth", "GRAY"), ("mask", "GRAY"))

Pixels = NDArray[np.uint8]
Images = list[tuple[bytes, ...]]
"""The bytes of fgbg, depth and mask of each tuple."""


def images_in_memory(shards: Path) -> Images:
    """The images of all training tuples, without their backgrounds."""
    return [tuple(sample[name] for name, _ in COLORSPACES) for sample in encoded_samples(shards)]


def decode_all(images: Images, size: int) -> int:
    """Decode all, and return how many tuples they are."""
    buffers = [
        np.empty_like(_decode(data, space, size)) for data, (_, space) in zip(images[0], COLORSPACES, strict=True)
    ]
    for encoded in images:
        for data, (_, space), buffer in zip(encoded, COLORSPACES, buffers, strict=True):
            _decode(data, space, size, buffer)
    return len(images)


def _decode(data: bytes, space: str, size: int, buffer: Pixels | None = None) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, space, min_height=size, min_width=size, buffer=buffer)
    return pixels


class SideBySide:
    """The same loop in several processes at the same moment, each over all the images."""

    def __init__(self, images: Images, processes: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connections = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, images), daemon=True)
            process.start()
            self._connections.append(ours)
            self._processes.append(process)

    def epoch(self, size: int) -> Epoch:
        """Has all of them decode at the same time; counts the tuples of all."""

        def run() -> int:
            for connection in self._connections:
                connection.send(size)
            return sum(connection.recv() for connection in self._connections)

        return run

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.send(0)
            process.join(10)


def _serve(connection: "Connection[int, int]", images: Images) -> None:
    while size := connection.recv():
        connection.send(decode_all(images, size))


@contextmanager
def side_by_side(images: Images, processes: int) -> Iterator[SideBySide]:
    """Processes that are ended after the block."""
    running = SideBySide(images, processes)
    try:
        yield running
    finally:
        running.close()
