"""One update of the weights that leaves no trace if it must not be: exchange of the loss, check, optimizer step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

SMALLEST_SCALE = 1.0
"""Of fp16. A scaler tries scales until the gradient fits, and halves one that does not; a gradient that does not fit
unscaled either is not finite itself. Unlike a number of such steps in a row, the scale outlives a resume, and a good
step between hides nothing from it."""


@dataclass(frozen=True)
class Applied:
    """What became of a step, the same on every process."""

    losses: list[float]
    """Means over the global batch."""
    gradient_norm: float | None
    """L2 norm before clipping; None in fp16, where the gradient is scaled."""
    finite: bool
    """Whether the loss and the gradient were finite, or the scale of fp16 was to blame."""
    changed: bool
    """Whether the weights changed: not if something was not finite."""


class Update:
    """What one step does after its backward passes.

    Weights and the optimizer's state change in `apply` alone. A forward pass in training mode changes BatchNorm's
    statistics, which are kept in `begin` and put back when the step does not count.
    """

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, optimizer: AcceleratedOptimizer, clip_norm: float | None
    ) -> None:
        """`module` is not wrapped for DDP; `optimizer` was prepared by `accelerator`; a longer gradient is cut."""
        self._clip_norm = clip_norm
        self._accelerator = accelerator
        self._optimizer = optimizer
        self._parameters = list(module.parameters())
        self._buffers = list(module.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def begin(self) -> None:
        """To be called before the first forward pass of a step."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def apply(self, losses: Sequence[Tensor]) -> Applied:
        """Change the weights by the gradients, unless those or the loss are not finite on any process.

        `losses` are those of this process's micro-batches, each of shape (n,), weighted. What comes back is the same on
        every process. Waits for the device once.
        """
        means = torch.stack(list(losses)).sum(0)
        if dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        *figures, norm = torch.cat([means, self._gradient_norm().to(means)[None]]).tolist()
        changed = finite = all(map(math.isfinite, (*figures, norm)))
        scaler = self._accelerator.scaler
        if scaler is None:
            if finite:
                self._clip(norm)
                self._optimizer.step()
        else:
            if not finite:
                self._spoil_gradient()
            if self._clip_norm is not None:
                self._accelerator.clip_grad_norm_(self._parameters, self._clip_norm)
            self._optimizer.step()
            if not finite and all(map(math.isfinite, figures)):
                finite = scaler.get_scale() >= SMALLEST_SCALE
        if not changed:
            self._restore_statistics()
        self._optimizer.zero_grad()
        return Applied(figures, norm if scaler is None else None, finite, changed)

    def drop(self) -> None:
        """Forget the step that was begun."""
        self._restore_statistics()
        self._optimizer.zero_grad()

    def _spoil_gradient(self) -> None:
        """Let the scaler skip this step, too."""
        next(parameter.grad for parameter in self._parameters if parameter.grad is not None).fill_(math.nan)

    def _gradient_norm(self) -> Tensor:
        """The L2 norm of the whole gradient; not finite if any part of it is not, or if it is beyond all use."""
        return nn.utils.get_total_norm([each.grad for each in self._parameters if each.grad is not None])

    def _clip(self, norm: float) -> None:
        if self._clip_norm is not None and norm > self._clip_norm:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, self._clip_norm / norm)

    @torch.no_grad()
    def _restore_statistics(self) -> None:
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.copy_(kept)
