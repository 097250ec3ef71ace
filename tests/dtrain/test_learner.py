"""Weights and optimizer restored from a checkpoint: what comes from there, and what from the configuration."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.amp import GradScaler

from dtrain.checkpoint import Checkpoint
from dtrain.config import Config
from dtrain.learner import Learner

MakeConfig = Callable[..., Config]

FAST = "--optimizer.learning_rate=0.01"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that two trainings give the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def begin(config: Config, checkpoint: Checkpoint | None = None, scaler: GradScaler | None = None) -> Learner:
    """A learner on the CPU, where Accelerate makes no scaler for fp16 by itself."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler
    return Learner(config, accelerator, checkpoint)


def train(learner: Learner, steps: int = 1) -> dict[str, Tensor]:
    """Some steps on noise, the same each time; the weights after them."""
    images = torch.rand(3, 6, 16, 16, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        learner.update.begin()
        prediction = learner.model(images)
        loss = (prediction.depth - images[:, :1]).square().mean() + prediction.mask_logits.square().mean()
        learner._accelerator.backward(loss)
        assert learner.update.apply([loss.detach()[None]]).changed
    return {name: tensor.clone() for name, tensor in learner.module.state_dict().items()}


def saved(learner: Learner, config: Config) -> Checkpoint:
    """What a run keeps of it."""
    checkpoint = learner.checkpoint()
    state = json.loads(json.dumps({**checkpoint.state, "identity": config.identity()}))
    copies = [
        {name: tensor.clone() for name, tensor in tensors.items()}
        for tensors in (checkpoint.weights, checkpoint.optimizer, checkpoint.average)
    ]
    return Checkpoint(copies[0], copies[1], state, copies[2])


def hyperparameters(learner: Learner) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params"} for group in learner.optimizer.param_groups
    ]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_it_goes_on_to_the_same_bits(name: str, make_config: MakeConfig) -> None:
    config = make_config(FAST, "--optimizer.name", name, "--optimizer.ema_half_life=6")
    undisturbed = begin(config)
    train(undisturbed, 2)
    resumed = begin(config, saved(undisturbed, config))
    assert same(train(resumed, 2), train(undisturbed, 2))
    assert same(resumed.checkpoint().optimizer, undisturbed.checkpoint().optimizer)
    assert same(resumed.checkpoint().average, undisturbed.checkpoint().average)


@pytest.mark.parametrize(
    ("name", "change", "changed"),
    [
        ("adamw", "--optimizer.weight_decay=0.5", {"weight_decay": 0.5}),
        ("sgd", "--optimizer.weight_decay=0.5", {"weight_decay": 0.5}),
        ("adamw", "--optimizer.momentum=0.5", {"betas": (0.5, 0.999)}),
        ("sgd", "--optimizer.momentum=0.5", {"momentum": 0.5}),
    ],
)
def test_a_changed_hyperparameter_is_the_one_that_counts(
    name: str, change: str, changed: dict[str, Any], make_config: MakeConfig
) -> None:
    """It goes on as an optimizer does whose hyperparameter is changed on the way."""
    options = (FAST, "--optimizer.name", name)
    config, new_config = make_config(*options), make_config(*options, change)
    before = begin(config)
    train(before)
    checkpoint = saved(before, config)
    resumed = begin(new_config, checkpoint)
    assert hyperparameters(resumed) == hyperparameters(begin(new_config))
    for group in before.optimizer.param_groups:
        if group["weight_decay"] or "weight_decay" not in changed:
            group.update(changed)
    expected = train(before, 2)
    assert same(train(resumed, 2), expected)
    assert not same(train(begin(config, checkpoint), 2), expected), "or it would show nothing"


@pytest.mark.parametrize(("name", "other"), [("adamw", "sgd"), ("sgd", "adam"), ("adam", "adamw")])
def test_another_optimizer_begins_with_an_empty_state(name: str, other: str, make_config: MakeConfig) -> None:
    config, new_config = make_config(FAST, "--optimizer.name", name), make_config(FAST, "--optimizer.name", other)
    before = begin(config)
    train(before)
    checkpoint = saved(before, config)
    new = begin(new_config)
    new.module.load_state_dict(checkpoint.weights)
    assert same(train(begin(new_config, checkpoint), 2), train(new, 2))


def test_a_checkpoint_of_a_gpu_goes_on_without_one(make_config: MakeConfig) -> None:
    """There the optimizer is fused. An earlier version kept that with its state, and it is no reason to be so here."""
    config = make_config(FAST)
    before = begin(config)
    for group in before.optimizer.param_groups:
        group["fused"] = True
    train(before)
    checkpoint = saved(before, config)
    groups = before.optimizer.state_dict()["param_groups"]
    rest = {"optimizer": {**checkpoint.state["optimizer"], "param_groups": groups}}
    for state in (checkpoint.state, checkpoint.state | rest):
        resumed = begin(config, replace(checkpoint, state=state))
        assert hyperparameters(resumed) == hyperparameters(begin(config))
        assert same(resumed.checkpoint().weights, checkpoint.weights)
        assert not same(train(resumed), checkpoint.weights)


def test_fp16_that_comes_later_begins_with_a_new_scale(make_config: MakeConfig) -> None:
    config = make_config(FAST)
    before = begin(config)
    train(before)
    scaler = GradScaler("cpu", init_scale=64.0)
    train(begin(config, saved(before, config), scaler))
    assert scaler.get_scale() == 64.0


def test_the_scale_of_fp16_is_kept_and_dropped_with_it(make_config: MakeConfig) -> None:
    config = make_config(FAST)
    before = begin(config, None, GradScaler("cpu", init_scale=64.0, growth_interval=1))
    train(before)
    checkpoint = saved(before, config)
    scaler = GradScaler("cpu")
    begin(config, checkpoint, scaler)
    assert scaler.get_scale() == 128.0
    train(begin(config, checkpoint))
