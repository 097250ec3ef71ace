"""Memory for batches, used again when nobody holds it any more. Knows nothing of what is in it.

Fresh memory of some tens of megabytes for each batch would be zeroed by the kernel page by page, which takes its time
from decoding.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.data.rows import CHANNELS, Shape, component_bytes
from dtrain.data.workers import BatchMemory


class Lent(NamedTuple):
    """Memory, and the tensor over its first bytes whose end gives it back."""

    memory: BatchMemory
    tensor: Tensor


class BatchBuffers:
    """Gives out uint8 tensors; their memory comes back by itself when the last tensor on it is gone. Thread-safe.

    Keeps about `most` free pieces. Pinned memory is left to torch, which keeps its own and knows when the device has
    copied it.
    """

    def __init__(self, most: int, allocate: Callable[[int], BatchMemory], *, pin_memory: bool = False) -> None:
        self._most = most
        self._pin_memory = pin_memory
        self._allocate = allocate
        self._free: list[BatchMemory] = []
        self._returned: deque[BatchMemory] = deque()
        self._lock = threading.Lock()

    def take(self, size: int) -> Lent:
        """A tensor of so many bytes, with any content."""
        if self._pin_memory:
            pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            return Lent(BatchMemory.over(pinned.numpy()), pinned)
        with self._lock:
            piece = self._find(size) or self._allocate(size)
        lent = piece.bytes[:size]  # what torch holds on to: when it dies, nothing can see the memory any more
        # Called wherever the garbage collector runs, so it takes no lock: appending to a deque needs none.
        weakref.finalize(lent, self._returned.append, piece).atexit = False
        return Lent(piece, torch.from_numpy(lent))

    def _find(self, size: int) -> BatchMemory | None:
        """A free piece that is large enough."""
        while self._returned:
            self._free.append(self._returned.popleft())
        del self._free[: -self._most]
        # The one that came back last is the likeliest to be in the processor's cache still.
        for number in reversed(range(len(self._free))):
            if len(self._free[number]) >= size:
                return self._free.pop(number)
        return None


def tensors_in(whole: Tensor, shape: Shape) -> list[Tensor]:
    """The tensors of all components, (rows, H, W, C), in the memory of a batch, where `slots_in` has them.

    Made by torch, which so still knows whose pinned memory they lie in.
    """
    parts = torch.split(whole, component_bytes(shape))
    return [part.view(*shape, channels) for part, channels in zip(parts, CHANNELS, strict=True)]
