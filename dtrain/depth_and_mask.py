"""A network as those who use it want it: depth and mask probability at the size of its input. Never trains it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthAndMask(nn.Module):
    """(B, 6, H, W) → depth in [0, 1] and mask probability, both float32 (B, 1, H, W).

    Where the network predicts at a smaller size, depth and the mask's log-odds are brought to that of the input
    bilinearly, as an evaluation does. Depth is clipped to its range.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        depth, logits = self.network(images)
        depth, logits = depth.float(), logits.float()
        if depth.shape[-2:] != images.shape[-2:]:
            depth, logits = (F.interpolate(plane, images.shape[-2:], mode="bilinear") for plane in (depth, logits))
        return depth.clamp(0, 1), torch.sigmoid(logits)
