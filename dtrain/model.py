"""The network: depth of fgbg and mask of the object, from bg and fgbg. Knows nothing of data, losses or devices."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtrain.sizes import SIZE_DIVISOR


class Prediction(NamedTuple):
    """What the network says, each of shape (B, 1, H, W)."""

    depth: Tensor
    """Depth, meant to lie in [0, 1] but not bounded."""
    mask_logits: Tensor
    """Log-odds that a pixel belongs to the object; losses take these, which is safe in half precision."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.depth.shape[-2], self.depth.shape[-1]

    @property
    def mask(self) -> Tensor:
        """Probability that a pixel belongs to the object, float32 in [0, 1]."""
        return torch.sigmoid(self.mask_logits.float())


class EncoderBlock(nn.Sequential):
    """3×3 convolution → ReLU → BatchNorm, (B, in, H, W) → (B, out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels_out))


class DecoderBlock(nn.Sequential):
    """Convolution → BatchNorm → ReLU, (B, in, H, W) → (B, out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


class DenseEncoder(nn.Module):
    """Four levels of densely connected blocks with 2×2 max pooling between them: what the networks have in common.

    `width` scales all channel counts but those of the input: 64, 128, 256 and 512 a block.
    """

    def __init__(self, width: float) -> None:
        """Raises ValueError if `width` leaves a layer without channels."""
        super().__init__()
        c64, c128, c256, c512 = (scaled(channels, width) for channels in (64, 128, 256, 512))
        self.encoder1a = EncoderBlock(6, c64)
        self.encoder1b = EncoderBlock(c64, c64)
        joined1 = 2 * c64
        self.encoder2a = EncoderBlock(joined1, c128)
        self.encoder2b = EncoderBlock(joined1 + c128, c128)
        self.encoder2c = EncoderBlock(joined1 + 2 * c128, c128)
        joined2 = 3 * c128
        self.encoder3a = EncoderBlock(joined2, c256)
        self.encoder3b = EncoderBlock(joined2 + c256, c256)
        self.encoder3c = EncoderBlock(joined2 + 2 * c256, c256)
        joined3 = 3 * c256
        self.encoder4a = EncoderBlock(joined3, c512)
        self.encoder4b = EncoderBlock(joined3 + c512, c512)
        self.encoder4c = EncoderBlock(joined3 + 2 * c512, c512)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The last block of each level, at 1, 1/2, 1/4 and 1/8 of the size of `images`, (B, 6, H, W).

        Raises ValueError if height or width is not divisible by 8.
        """
        if images.shape[-2] % SIZE_DIVISOR or images.shape[-1] % SIZE_DIVISOR:
            raise ValueError(f"images of {tuple(images.shape[-2:])}: sides must be divisible by {SIZE_DIVISOR}")
        e1a = self.encoder1a(images)
        e1b = self.encoder1b(e1a)
        x = F.max_pool2d(torch.cat([e1a, e1b], 1), 2)
        e2a = self.encoder2a(x)
        e2b = self.encoder2b(torch.cat([x, e2a], 1))
        e2c = self.encoder2c(torch.cat([x, e2a, e2b], 1))
        x = F.max_pool2d(torch.cat([e2a, e2b, e2c], 1), 2)
        e3a = self.encoder3a(x)
        e3b = self.encoder3b(torch.cat([x, e3a], 1))
        e3c = self.encoder3c(torch.cat([x, e3a, e3b], 1))
        x = F.max_pool2d(torch.cat([e3a, e3b, e3c], 1), 2)
        e4a = self.encoder4a(x)
        e4b = self.encoder4b(torch.cat([x, e4a], 1))
        return e1b, e2c, e3c, self.encoder4c(torch.cat([x, e4a, e4b], 1))


class DepthMaskNet(DenseEncoder):
    """Densely connected encoder, additive skips, one decoder for both outputs.

    Input (B, 6, H, W): cat(bg, fgbg) in [0, 1], H and W divisible by 8. `width` scales all inner channel counts;
    1.0 is the network of the write-up with 24,019,618 parameters. Layers are registered in the order of its table.
    """

    def __init__(self, width: float = 1.0) -> None:
        """Raises ValueError if `width` leaves a layer without channels."""
        c32, c64, c128, c256, c512 = (scaled(channels, width) for channels in (32, 64, 128, 256, 512))
        super().__init__(width)
        self.reduce3 = DecoderBlock(c512, c256, 1)
        self.decoder3 = DecoderBlock(c256, c256, 3)
        self.reduce2 = DecoderBlock(c256, c128, 1)
        self.decoder2 = DecoderBlock(c128, c128, 3)
        self.reduce1 = DecoderBlock(c128, c64, 1)
        self.decoder1 = DecoderBlock(c64, c64, 3)
        self.decoder0 = DecoderBlock(c64, c32, 3)
        self.depth_head = nn.Conv2d(c32, 1, 1)
        self.mask_head = nn.Conv2d(c32, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Prediction:
        """Raises ValueError if height or width is not divisible by 8."""
        e1b, e2c, e3c, x = self.encode(images)
        x = self.decoder3(self.reduce3(_double(x)) + e3c)
        x = self.decoder2(self.reduce2(_double(x)) + e2c)
        x = self.decoder1(self.reduce1(_double(x)) + e1b)
        x = self.decoder0(x)
        return Prediction(self.depth_head(x), self.mask_head(x))


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded; ValueError if fewer than one are left."""
    if round(channels * width) < 1:
        raise ValueError(f"width {width}: leaves nothing of {channels} channels; expected at least {0.5 / 32:.3f}")
    return round(channels * width)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
