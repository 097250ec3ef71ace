"""The optimizer that a configuration names, and its state as tensors and numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dtrain.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, module: nn.Module) -> Optimizer:
    """An optimizer over the parameters of `module`, fused on a GPU; the learning rate is set anew before every step.

    Weights with two axes or more decay; those with one (biases, and scales of normalisation) don't. What is smaller
    because its unit is arbitrary should not be pulled to zero.
    """
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in module.parameters() if parameter.ndim > 1]},
        {"params": [parameter for parameter in module.parameters() if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    rest: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if next(module.parameters()).is_cuda:
        rest["fused"] = True
    match config.name:
        case "adamw":
            return AdamW(groups, betas=(config.momentum, 0.999), **rest)
        case "adam":
            return Adam(groups, betas=(config.momentum, 0.999), **rest)
        case "sgd":
            return SGD(groups, momentum=config.momentum, **rest)


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is to be kept of `state_dict`: tensors by name ("12.exp_avg" of parameter 12) and the rest, JSON.

    Hyperparameters are not: they follow from the configuration and the device.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, {"numbers": numbers}


def join_state(tensors: Mapping[str, Tensor], rest: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """What `load_state_dict` of `optimizer` takes so that it keeps its hyperparameters.

    Tensors of the shape of their parameter get its order of axes in memory, too.
    Raises ValueError if a name belongs to no parameter.
    """
    groups = optimizer.param_groups
    parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **rest["numbers"]}.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"{name}: there are {len(parameters)} parameters")
        parameter = parameters[int(index)]
        alike = isinstance(value, Tensor) and value.shape == parameter.shape
        state.setdefault(int(index), {})[key] = _laid_out_like(parameter, value) if alike else value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _laid_out_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
