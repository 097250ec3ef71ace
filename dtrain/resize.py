"""Planes brought from one size to another, on the device. Pure functions of tensors."""

import torch.nn.functional as F
from torch import Tensor

from dtrain.model import Prediction


def resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) at another (height, width): bilinear, averaging over what is left out when it gets smaller.

    Only when it gets smaller does its gradient have no deterministic implementation on GPUs.
    """
    if planes.shape[-2:] == size:
        return planes
    smaller = size[0] < planes.shape[-2] or size[1] < planes.shape[-1]
    return F.interpolate(planes.float(), size, mode="bilinear", antialias=smaller)


def resize_prediction(prediction: Prediction, size: tuple[int, int]) -> Prediction:
    """Depth and logits of the mask at another (height, width)."""
    return Prediction(resize(prediction.depth, size), resize(prediction.mask_logits, size))
