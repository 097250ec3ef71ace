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

from dtrain.data.workers import BatchMemory


class Lent(NamedTuple):
    """Memory, and the tensor over its first bytes whose end gives it back."""

    memory: BatchMemory
    tensor: Tensor


class BatchBuffers:
    """Gives out uint8 tensors; their memory comes back by itself when the last tensor on it is gone. Thread-safe.

    Keeps about `most` free pieces.
    """

    def __init__(self, most: int, allocate: Callable[[int], BatchMemory]) -> None:
        self._most = most
        self._allocate = allocate
        self._free: list[BatchMemory] = []
        self._returned: deque[BatchMemory] = deque()
        self._lock = threading.Lock()

    def take(self, size: int) -> Lent:
        """A tensor of so many bytes, with any content."""
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
