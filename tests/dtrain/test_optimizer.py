"""Optimizers, their state, clipping and averages: what a step does to the weights."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from dtrain.average import Average
from dtrain.config import OptimizerConfig
from dtrain.optimizer import join_state, make_optimizer, split_state
from dtrain.update import Update


class Small(nn.Module):
    """A convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images))  # type: ignore[no-any-return]


@pytest.fixture
def module() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_only_weights_of_convolutions_decay(name: str, module: Small) -> None:
    config = OptimizerConfig.model_validate({"name": name, "weight_decay": 0.5, "learning_rate": 0.1})
    before = {key: value.clone() for key, value in module.named_parameters()}
    optimizer = make_optimizer(config, module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {key for key, value in module.named_parameters() if not torch.equal(value, before[key])}
    assert changed == {"conv.weight"}
    assert module.conv.weight.abs().sum() < before["conv.weight"].abs().sum()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_state_survives_as_tensors_and_numbers(name: str, module: Small) -> None:
    config = OptimizerConfig.model_validate({"name": name})
    optimizer = make_optimizer(config, module)
    steps(module, optimizer, 3)
    tensors, rest = split_state(optimizer.state_dict())
    again = Small()
    again.load_state_dict(module.state_dict())
    resumed = make_optimizer(config, again)
    resumed.load_state_dict(join_state({k: v.clone() for k, v in tensors.items()}, rest, resumed))
    steps(module, optimizer, 2)
    steps(again, resumed, 2)
    for key, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize(("norm", "expected"), [(None, 20.0), (30.0, 20.0), (2.0, 2.0)])
def test_a_longer_gradient_is_cut_to_the_norm(norm: float | None, expected: float) -> None:
    module = nn.Linear(4, 1, bias=False)
    module.weight.data.zero_()
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(module.parameters(), 1.0))
    update = Update(accelerator, module, optimizer, norm)
    update.begin()
    module.weight.grad = torch.full((1, 4), 10.0)
    applied = update.apply([torch.ones(2)])
    assert applied.gradient_norm == pytest.approx(20.0), "as it was before"
    assert (applied.finite, applied.changed, applied.losses) == (True, True, [1.0, 1.0])
    assert module.weight.norm().item() == pytest.approx(expected)


def test_an_average_is_that_of_all_states_weighted_by_their_age(module: Small) -> None:
    """Against the sum written out: a state's share halves with every `half_life` samples that come after it."""
    average = Average(module, half_life=40)
    states, ages = [], [10, 20, 10, 40]
    for samples in ages:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        for buffer in module.buffers():
            buffer.add_(1)
        average.take(module, samples)
        states.append({key: value.clone() for key, value in module.state_dict().items()})
    weights = [
        (1 - 0.5 ** (samples / 40)) * 0.5 ** (sum(ages[number + 1 :]) / 40) for number, samples in enumerate(ages)
    ]
    for key in ("conv.weight", "norm.weight", "norm.running_mean"):
        parts = [weight * state[key].double() for weight, state in zip(weights, states, strict=True)]
        expected = torch.stack(parts).sum(0) / sum(weights)
        torch.testing.assert_close(average.module.state_dict()[key].double(), expected, rtol=1e-5, atol=1e-6)
    assert average.module.state_dict()["norm.num_batches_tracked"] == 4
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


def test_a_saved_average_goes_on_to_the_same_bits(module: Small) -> None:
    one = Average(module, half_life=30)
    one.take(module, 7)
    saved: dict[str, Any] = {key: value.clone() for key, value in one.module.state_dict().items()}
    other = Average(Small(), half_life=30)
    other.load(saved, one.state())
    with torch.no_grad():
        module.conv.weight.mul_(2)
    for average in (one, other):
        average.take(module, 7)
    assert torch.equal(one.module.state_dict()["conv.weight"], other.module.state_dict()["conv.weight"])
    assert not torch.equal(one.module.state_dict()["conv.weight"], module.conv.weight)


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    """Train on the same noise."""
    images = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)
    for _ in range(count):
        optimizer.zero_grad()
        module(images).square().mean().backward()
        (module(images) * images[:, :1, :4, :4]).sum().backward()
        optimizer.step()
