"""The optimizer that a configuration names, and its state as tensors and numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dtrain.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """An optimizer over `parameters`; the learning rate is set anew before every step."""
    parameters = list(parameters)
    match config.name:
        case "adamw":
            return AdamW(
                parameters, config.learning_rate, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
            )
        case "adam":
            return Adam(
                parameters, config.learning_rate, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
            )
        case "sgd":
            return SGD(parameters, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `state_dict` of an optimizer gives, as tensors by name ("12.exp_avg" of parameter 12) and the rest, JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def join_state(
    tensors: Mapping[str, Tensor], rest: Mapping[str, Any], parameters: Iterable[nn.Parameter]
) -> dict[str, Any]:
    """What `load_state_dict` takes. Tensors of the shape of their parameter get its order of axes in memory, too.

    Raises ValueError if a name belongs to no parameter.
    """
    parameters = list(parameters)
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **rest["numbers"]}.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"{name}: there are {len(parameters)} parameters")
        parameter = parameters[int(index)]
        alike = isinstance(value, Tensor) and value.shape == parameter.shape
        state.setdefault(int(index), {})[key] = _laid_out_like(parameter, value) if alike else value
    return {"state": state, "param_groups": rest["param_groups"]}


def _laid_out_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
