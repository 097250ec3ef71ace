"""Structural similarity of two images at every pixel. Never averages, pads or clamps its input.

Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity (2004).
"""

import torch
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def ssim_map(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """SSIM of `a` and `b`, (B, C, H, W) → (B, C, H−10, W−10), at most 1 (where they are equal) and at least −1.

    Gaussian window of 11×11 pixels with σ 1.5, only where it lies wholly in the image; K1 0.01, K2 0.03; each
    channel by itself. `data_range` is the difference of the largest and the smallest value that a pixel can have: 1
    for [0, 1]. Computed in the inputs' dtype, which should be float32 or float64, also under autocast. Raises
    ValueError if the shapes differ or a side is under 11 pixels.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of {tuple(a.shape)} and {tuple(b.shape)}: SSIM compares images of the same shape")
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"images of {tuple(a.shape[-2:])}: SSIM needs sides of at least {WINDOW} pixels")
    # Variances do not depend on the level; around 0 they lose the fewest digits.
    level_a, level_b = (x.detach().mean((-2, -1), keepdim=True) for x in (a, b))
    a, b = a - level_a, b - level_b
    mean_a, mean_b, aa, bb, ab = _blur(torch.stack([a, b, a * a, b * b, a * b])).unbind()
    # Both bounds hold but for rounding, which matters where a value is far out of the data range.
    variances = (aa - mean_a * mean_a + bb - mean_b * mean_b).clamp(min=0)
    twice_covariance = (2 * (ab - mean_a * mean_b)).clamp(-variances, variances)
    mean_a, mean_b = mean_a + level_a, mean_b + level_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    return luminance * (twice_covariance + c2) / (variances + c2)


def _blur(x: Tensor) -> Tensor:
    """Weighted means under the window, (…, H, W) → (…, H−10, W−10).

    The two passes of a separable convolution, each as the product with a band matrix: several times as fast as a
    convolution of one channel, and in full float32 on GPUs, where convolutions round to TF32.
    """
    rows, columns = (_band(side, x) for side in x.shape[-2:])
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x @ columns.mT


def _band(side: int, like: Tensor) -> Tensor:
    """The window's weights from every place on, (side − 10, side), of the dtype and device of `like`."""
    places = torch.arange(side, dtype=like.dtype, device=like.device)
    offset = places - places[: side - WINDOW + 1, None] - WINDOW // 2
    weights = torch.exp(-offset.square() / (2 * SIGMA**2)) * (offset.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)
