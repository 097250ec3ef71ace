"""The optimizer that a configuration names."""

from collections.abc import Iterable

from torch import nn
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
