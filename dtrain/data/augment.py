"""Random changes of colour and frame, on the device. Never draws from a generator with a state of its own.

What happens to a sample follows from (seed, stage, epoch, its key), and each of its pixels comes from elementwise
arithmetic: the result is the same, bit for bit, in whatever batch, micro-batch or process the sample is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.config import AugmentConfig
from dtrain.data.loader import Batch
from shard_tools.permutation import derive_key, hash_range

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), as of Pillow's mode "L"."""

_GRAY = torch.tensor([LUMINANCE] * 3, dtype=torch.float64)
_COLOUR = torch.eye(3, dtype=torch.float64) - _GRAY
_ACROSS = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
_TURNED = _ACROSS - _GRAY @ _ACROSS

_LEVELS = 2**16


@dataclass(frozen=True)
class Augmentation:
    """What happens to each of B samples, in float64 on the host; None where the configuration has it off."""

    colour: Tensor | None = None
    """(B, 4): factors of brightness, contrast and saturation; hue in turns of the colour circle, red to green first."""
    flip: Tensor | None = None
    """(B,) of bool: mirrored, left to right."""
    window: Tensor | None = None
    """(B, 3): top, left and side of the square that is kept, as shares of the image's side."""


def draw(config: AugmentConfig, keys: Sequence[str], *, seed: int, stage: int, epoch: int) -> Augmentation:
    """What happens to the samples called `keys` in this epoch. Pure."""
    hashed = np.stack([hash_range(8, derive_key("augment", seed, stage, epoch, key)) for key in keys])
    chance = torch.from_numpy((hashed >> np.uint64(11)) * 2.0**-53)  # in [0, 1)
    reach = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue], dtype=torch.float64)
    unchanged = torch.tensor([1, 1, 1, 0], dtype=torch.float64)
    side = config.crop + (1 - config.crop) * chance[:, 5]
    window = torch.stack([(1 - side) * chance[:, 6], (1 - side) * chance[:, 7], side], 1)
    return Augmentation(
        colour=unchanged + reach * (2 * chance[:, :4] - 1) if reach.any() else None,
        flip=chance[:, 4] < config.flip if config.flip else None,
        window=window if config.crop < 1 else None,
    )


def augment(batch: Batch, drawn: Augmentation) -> Batch:
    """`batch` with the changes of `drawn`, on its device, in its shapes, ranges and memory formats.

    Both images change colour alike; all four components keep the same part and are mirrored together.
    """
    if drawn.window is not None:
        batch = _crop(batch, drawn.window, drawn.flip)
    elif drawn.flip is not None:
        batch = _mirror(batch, drawn.flip)
    return batch if drawn.colour is None else replace(batch, images=_recolour(batch.images, drawn.colour))


def colour_map(colour: Tensor) -> tuple[Tensor, Tensor]:
    """The affine maps of RGB that make the changes in `colour` (B, 4), brightness first and hue last.

    Returns matrices (B, 3, 3), and (B,) factors of the background's mean luminance, to be added to every channel; both
    float64. Hue and saturation leave luminance and grays as they are. Source: P. Haeberli, "Matrix Operations for
    Image Processing", 1993, whose product of matrices is written out here.
    """
    brightness, contrast, saturation, hue = colour.unbind(1)
    angles = [math.tau * turn for turn in hue.tolist()]
    kept = saturation * torch.tensor([math.cos(angle) for angle in angles], dtype=torch.float64)
    turned = saturation * torch.tensor([math.sin(angle) for angle in angles], dtype=torch.float64)
    matrix = _GRAY + kept[:, None, None] * _COLOUR + turned[:, None, None] * _TURNED
    return (brightness * contrast)[:, None, None] * matrix, brightness * (1 - contrast)


def _recolour(images: Tensor, colour: Tensor) -> Tensor:
    matrix, share = (table.to(torch.float32).to(images.device) for table in colour_map(colour))
    rows = matrix[..., None, None, None].unbind(1)
    offset = (share * _mean_luminance(images[:, :3]))[:, None, None, None]
    batch, _, height, width = images.shape
    red, green, blue = images.reshape(batch, 2, 3, height, width).contiguous().unbind(2)
    mixed = [red * row[:, 0] + green * row[:, 1] + blue * row[:, 2] + offset for row in rows]
    changed = torch.stack(mixed, 2).flatten(1, 2).clamp_(0, 1)
    return changed.contiguous(memory_format=torch.channels_last)


def _mean_luminance(rgb: Tensor) -> Tensor:
    """Of each image of (B, 3, S, S); shape (B,). Sums integers, so that no order of adding them changes a bit."""
    sums = (rgb * _LEVELS).round().to(torch.int32).sum((2, 3))
    red, green, blue = (sums.to(torch.float32) / (rgb[0, 0].numel() * _LEVELS)).unbind(1)
    mean: Tensor = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return mean


def _mirror(batch: Batch, flip: Tensor) -> Batch:
    chosen = flip.to(batch.images.device)[:, None, None, None]

    def mirrored(tensor: Tensor) -> Tensor:
        return torch.where(chosen, tensor.flip(-1), tensor)

    images = mirrored(batch.images).contiguous(memory_format=torch.channels_last)
    return replace(batch, images=images, depth=mirrored(batch.depth), mask=mirrored(batch.mask))


def _crop(batch: Batch, window: Tensor, flip: Tensor | None) -> Batch:
    """The part of every component in its window, at the batch's size, bilinear: never smaller, so nothing aliases."""
    size = batch.images.shape[-1]
    top, left, side = window[:, :, None].unbind(1)
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    x, y = left + side * centres, top + side * centres
    if flip is not None:
        x = torch.where(flip[:, None], x.flip(1), x)
    x, y = ((2 * line - 1).to(torch.float32).to(batch.images.device) for line in (x, y))
    shape = (len(window), size, size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    planes = torch.cat([batch.images, batch.depth, batch.mask], 1).contiguous()
    sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp_(0, 1)
    return replace(
        batch,
        images=sampled[:, :6].contiguous(memory_format=torch.channels_last),
        depth=sampled[:, 6:7].contiguous(),
        mask=sampled[:, 7:].contiguous(),
    )
