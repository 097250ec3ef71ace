"""Copies of tensors on the host, taken while training goes on. Knows nothing of files."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Snapshot:
    """Memory for one copy of a set of tensors, used again for each.

    On a GPU `take` only copies on the device, in the order of its stream, so that no step waits for the way to the
    host; `on_host` goes that way beside the steps that follow, through pinned memory.
    """

    def __init__(self) -> None:
        self._host: dict[str, Tensor] = {}
        self._device: dict[str, Tensor] = {}
        self._taken: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` as they are now. The copy before must not be in use any more."""
        self._device.clear()  # of a copy that nobody fetched
        self._taken = None
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        for name, tensor in tensors.items():
            host = self._host.get(name)
            if host is None or host.shape != tensor.shape or host.dtype != tensor.dtype:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._host[name] = host
            if tensor.is_cuda:
                self._device[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
            else:
                host.copy_(tensor)
        for name in self._host.keys() - tensors.keys():
            del self._host[name]
        if on_gpu:
            self._taken = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._taken.record()

    def on_host(self) -> dict[str, Tensor]:
        """The copy, contiguous on the CPU; valid until the next `take`. May be called by another thread."""
        if self._taken is not None:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                stream.wait_event(self._taken)
                for name, tensor in self._device.items():
                    self._host[name].copy_(tensor, non_blocking=True)
            stream.synchronize()
            self._device.clear()
            self._taken = None
        return dict(self._host)
