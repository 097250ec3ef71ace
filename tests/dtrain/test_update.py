"""What becomes of a step whose gradient is not finite, with the scaler that fp16 has on a GPU."""

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import AdamW, Optimizer

from dtrain.update import Applied, Update

START = 2.0**16
BEYOND_ALL_USE = 1e36
"""Finite in float32; its square is not, and so neither is the gradient's norm."""


class Scaled:
    """A small network whose loss is scaled."""

    def __init__(self, *, fused: bool, scale: float = START) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = self.scaler = GradScaler("cpu", init_scale=scale)
        optimizer: Optimizer = AdamW(self.module.parameters(), 0.1, fused=fused)
        self.update = Update(accelerator, self.module, accelerator.prepare(optimizer), None)

    def step(self, spoil: Callable[[torch.Tensor], torch.Tensor] = lambda gradient: gradient) -> Applied:
        """A step with a finite loss, and a gradient of a weight that `spoil` changes."""
        self.update.begin()
        loss = self.module(torch.linspace(-1, 1, 12).reshape(4, 3)).square().mean()
        self.scaler.scale(loss).backward()
        weight = next(self.module.parameters())
        assert weight.grad is not None
        weight.grad.copy_(spoil(weight.grad))
        return self.update.apply([loss.detach()[None]])

    def state(self) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in self.module.state_dict().values()]


def nowhere_finite(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.fill_(torch.nan)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_gradient_that_is_never_finite_is_not_laid_to_the_scale_for_ever(fused: bool) -> None:
    scaled = Scaled(fused=fused)
    before = scaled.state()
    applied = [scaled.step(nowhere_finite) for _ in range(20)]
    assert not any(step.changed for step in applied)
    assert [step.finite for step in applied] == [True] * 16 + [False] * 4, "it took 17 steps from 2¹⁶ to below 1"
    assert all(map(torch.equal, before, scaled.state())), "weights, and what BatchNorm has seen"


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_scale_that_was_too_large_is_tried_again_and_no_fault_of_the_step(fused: bool) -> None:
    scaled = Scaled(fused=fused)
    before = scaled.state()
    overflows = scaled.step(lambda gradient: gradient.fill_(torch.inf))
    assert (overflows.finite, overflows.changed, overflows.gradient_norm) == (True, False, None)
    assert all(map(torch.equal, before, scaled.state()))
    fits = scaled.step()
    assert (fits.finite, fits.changed, scaled.scaler.get_scale()) == (True, True, START / 2)
    assert not torch.equal(before[0], scaled.state()[0])
    assert scaled.state()[-1] == before[-1] + 1, "BatchNorm has seen the step that counts, and no other"


def test_a_gradient_that_is_beyond_all_use_is_skipped_by_the_scaler_too() -> None:
    scaled = Scaled(fused=False)
    before = scaled.state()
    applied = scaled.step(lambda gradient: gradient.fill_(BEYOND_ALL_USE))
    assert not applied.changed
    assert scaled.scaler.get_scale() == START / 2
    assert all(map(torch.equal, before, scaled.state()))


def test_a_loss_that_is_not_finite_counts_at_any_scale() -> None:
    scaled = Scaled(fused=False)
    before = scaled.state()
    scaled.update.begin()
    loss = scaled.module(torch.ones(4, 3)).square().mean()
    scaled.scaler.scale(loss).backward()
    applied = scaled.update.apply([torch.tensor([torch.inf])])
    assert (applied.finite, applied.changed) == (False, False)
    assert all(map(torch.equal, before, scaled.state()))
