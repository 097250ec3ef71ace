"""What is minimised: K · (MSE of depth + BCE of mask)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.model import Prediction


class Losses(NamedTuple):
    """Means over all pixels of a batch, float32 scalars."""

    total: Tensor
    depth_mse: Tensor
    mask_bce: Tensor


def depth_mask_loss(prediction: Prediction, depth: Tensor, mask: Tensor, *, scale: float) -> Losses:
    """`scale` · (depth MSE + mask BCE); `depth` and `mask` are (B, 1, H, W) in [0, 1].

    Computed in float32 whatever the precision of the network, BCE (in nats) from logits.
    """
    with torch.autocast(depth.device.type, enabled=False):
        depth_mse = F.mse_loss(prediction.depth.float(), depth)
        mask_bce = F.binary_cross_entropy_with_logits(prediction.mask_logits.float(), mask)
        return Losses(scale * (depth_mse + mask_bce), depth_mse, mask_bce)
