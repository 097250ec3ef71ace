"""Memory for batches, used again when nobody holds it any more. Knows nothing of what is in it.

Fresh memory of some tens of megabytes for each batch would be zeroed by the kernel page by page, which takes its time
from decoding.
"""

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BatchBuffers:
    """Gives out uint8 tensors; their memory comes back by itself when the last tensor on it is gone. Thread-safe.

    Keeps about `most` free pieces. Pinned memory is left to torch, which keeps its own and knows when the device
    has copied it.
    """

    def __init__(self, most: int, *, pin_memory: bool = False) -> None:
        self._most = most
        self._pin_memory = pin_memory
        self._free: deque[NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def take(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """A tensor of each shape, with any content; all share one piece of memory."""
        sizes = [math.prod(shape) for shape in shapes]
        if self._pin_memory:
            whole = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        else:
            whole = torch.from_numpy(self._lend(sum(sizes)))
        return [part.view(shape) for part, shape in zip(torch.split(whole, sizes), shapes, strict=True)]

    def _lend(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            while len(self._free) > self._most:
                self._free.popleft()
            # The one that came back last is the likeliest to be in the processor's cache still.
            fitting = [number for number, piece in enumerate(self._free) if len(piece) >= size]
            if fitting:
                piece = self._free[fitting[-1]]
                del self._free[fitting[-1]]
            else:
                piece = np.empty(size, dtype=np.uint8)
        lent = piece[:size]  # what torch holds on to: when it dies, nothing can see the memory any more
        # Called wherever the garbage collector runs, so it takes no lock: appending to a deque needs none.
        weakref.finalize(lent, self._free.append, piece).atexit = False
        return lent
