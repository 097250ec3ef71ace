"""The network that a configuration names. Knows nothing of weights, data or devices."""

from torch import nn

from dtrain.config import ModelConfig
from dtrain.model import DepthMaskNet
from dtrain.shrink import ShrinkNet


def make_network(config: ModelConfig) -> nn.Module:
    """A new network, from (B, 6, H, W) to `Prediction`; its initial weights depend on torch's seed."""
    match config.name:
        case "dense":
            return DepthMaskNet(config.width)
        case "shrink":
            return ShrinkNet(config.width)
