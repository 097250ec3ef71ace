"""Sums over the pixels of a sample, and the figures of merit that follow from the sums of any set of samples.

Pure functions. A sample's sums don't depend on the samples beside it, and adding is all that is done to them, so the
figures of a set are the same however it is cut into batches and spread over processes. Differences are computed in
float32 and summed in float64. docs/metrics.md has each figure's formula.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.figures import MIN_DEPTH, Figures
from dtrain.model import Prediction
from dtrain.resize import resize_prediction
from dtrain.ssim import WINDOW, ssim_map

MASK_THRESHOLD = 0.5
DELTA = 1.25
BOUNDARY_SHARE = 0.0075
"""Tolerance of the boundary's place, over the diagonal of the image: Csurka, Larlus, Perronnin, Meylan (2013)."""

SUMS: tuple[str, ...] = (
    *("samples", "pixels"),
    *("squared_error", "absolute_error", "smooth_l1", "depth", "depth_squared"),
    *("gradient_x", "gradient_y", "pairs_x", "pairs_y", "ssim", "ssim_windows"),
    *("valid", "floored", "relative", "squared_relative", "log_squared", "log_absolute"),
    *("delta1", "delta2", "delta3", "silog", "silog_samples"),
    *("bce", "mask_squared_error", "object", "claimed", "common"),
    *("boundary", "boundary_claimed", "boundary_found", "boundary_right"),
)
"""What `sample_sums` returns, in this order."""


def sample_sums(prediction: Prediction, depth: Tensor, mask: Tensor) -> Tensor:
    """The sums of each sample, (B, len(SUMS)), float64, on the device of `depth`.

    `depth` and `mask` are true values, (B, 1, H, W) in [0, 1]. A prediction of another size is first interpolated to
    theirs. Of any floating dtype; a value that is not finite makes the sums that it enters not finite.
    """
    height, width = depth.shape[-2:]
    with torch.autocast(depth.device.type, enabled=False):
        predicted, logits = (x.float().contiguous() for x in resize_prediction(prediction, (height, width)))
        depth, mask = depth.float().contiguous(), mask.float().contiguous()
        sums = {
            "samples": depth.new_ones(len(depth)),
            "pixels": depth.new_full((len(depth),), height * width),
            **_errors(predicted, depth),
            **_structure(predicted, depth),
            **_ratios(predicted, depth),
            **_mask(logits, mask),
            **_boundaries(logits > 0, mask > MASK_THRESHOLD),
        }
        return torch.stack([sums[name].double() for name in SUMS], dim=1)


def figures_of(sums: Tensor) -> Figures:
    """The figures of a set of samples from the sum of their sums, (len(SUMS),).

    A figure that is not defined is left out: depth_ssim under 11 pixels, relative and logarithmic ones without a valid
    pixel. Where nothing is there and nothing is claimed, what counts the object's pixels is 1; where only one of
    both is nothing, 0. Raises ZeroDivisionError without any sample.
    """
    s = dict(zip(SUMS, sums.tolist(), strict=True))
    return {**_depth_figures(s), **_ratio_figures(s), **_mask_figures(s)}


def boundary_tolerance(height: int, width: int) -> int:
    """How many pixels a boundary may be off: 0.75% of the diagonal, rounded, at least 1."""
    return max(1, round(BOUNDARY_SHARE * math.hypot(height, width)))


def _total(x: Tensor) -> Tensor:
    """Sums over all but the first axis: float64, and exact counts of true values."""
    flat = x.flatten(1)
    return flat.sum(1) if x.dtype == torch.bool else flat.sum(1, dtype=torch.float64)


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """`x` less its mean of each sample, so that float32 squares lose nothing of a small variance."""
    return x - mean.float().view(-1, 1, 1, 1)


def _errors(predicted: Tensor, depth: Tensor) -> dict[str, Tensor]:
    pixels = depth[0].numel()
    error = predicted - depth
    total = _total(depth)
    mean = total / pixels
    return {
        "squared_error": _total(error.square()),
        "absolute_error": _total(error.abs()),
        "smooth_l1": _total(F.smooth_l1_loss(predicted, depth, reduction="none")),
        "depth": total,
        "depth_squared": _total(_centred(depth, mean).square()) + pixels * mean.square(),
    }


def _structure(predicted: Tensor, depth: Tensor) -> dict[str, Tensor]:
    """How well neighbourhoods agree: first differences, and SSIM where its window fits."""
    error = predicted - depth
    along_x, along_y = error[..., :, 1:] - error[..., :, :-1], error[..., 1:, :] - error[..., :-1, :]
    ssim = ssim_map(predicted, depth) if min(depth.shape[-2:]) >= WINDOW else depth[..., :0]
    return {
        "gradient_x": _total(along_x.abs()),
        "gradient_y": _total(along_y.abs()),
        "pairs_x": depth.new_full((len(depth),), along_x[0].numel()),
        "pairs_y": depth.new_full((len(depth),), along_y[0].numel()),
        "ssim": _total(ssim),
        "ssim_windows": depth.new_full((len(depth),), ssim[0].numel()),
    }


def _ratios(predicted: Tensor, depth: Tensor) -> dict[str, Tensor]:
    """Errors relative to the true depth, and of logarithms, where that is above MIN_DEPTH."""
    valid = depth > MIN_DEPTH
    true = depth.clamp(min=MIN_DEPTH)
    relative = torch.where(valid, (predicted - depth).abs() / true, 0)
    floored = predicted.clamp(min=MIN_DEPTH)
    quotient = torch.where(valid, floored / true, 1)
    worse = torch.where(valid, torch.maximum(quotient, true / floored), math.inf)
    log = quotient.log()
    count, log_total, log_squared = _total(valid), _total(log), _total(log.square())
    some = count.clamp(min=1)
    spread = (_total((_centred(log, log_total / some) * valid).square()) / some).sqrt()
    return {
        "valid": count,
        "floored": _total(valid & (predicted < MIN_DEPTH)),
        "relative": _total(relative),
        "squared_relative": _total(relative.square() * true),
        "log_squared": log_squared,
        "log_absolute": _total(log.abs()),
        **{f"delta{power}": _total(worse < DELTA**power) for power in (1, 2, 3)},
        "silog": spread,
        "silog_samples": count > 0,
    }


def _mask(logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    claimed, true = logits > 0, mask > MASK_THRESHOLD
    return {
        "bce": _total(F.binary_cross_entropy_with_logits(logits, mask, reduction="none")),
        "mask_squared_error": _total((torch.sigmoid(logits) - mask).square()),
        "object": _total(true),
        "claimed": _total(claimed),
        "common": _total(claimed & true),
    }


def _boundaries(claimed: Tensor, true: Tensor) -> dict[str, Tensor]:
    """How much of each boundary lies near the other one."""
    tolerance = boundary_tolerance(*true.shape[-2:])
    there, said = _boundary(true), _boundary(claimed)
    return {
        "boundary": _total(there),
        "boundary_claimed": _total(said),
        "boundary_found": _total(there & _near(said, tolerance)),
        "boundary_right": _total(said & _near(there, tolerance)),
    }


def _boundary(mask: Tensor) -> Tensor:
    """The pixels of the object with a neighbour above, below, left or right that is not; bool (B, 1, H, W)."""
    inside = mask.clone()
    inside[..., 1:, :] &= mask[..., :-1, :]
    inside[..., :-1, :] &= mask[..., 1:, :]
    inside[..., :, 1:] &= mask[..., :, :-1]
    inside[..., :, :-1] &= mask[..., :, 1:]
    return mask & ~inside


def _near(mask: Tensor, distance: int) -> Tensor:
    """The pixels at most `distance` rows and columns from one of `mask`; bool (B, 1, H, W)."""
    for axis in (-2, -1):
        wider = mask.clone()
        for step in range(1, min(distance + 1, mask.shape[axis])):
            kept = mask.shape[axis] - step
            wider.narrow(axis, step, kept).logical_or_(mask.narrow(axis, 0, kept))
            wider.narrow(axis, 0, kept).logical_or_(mask.narrow(axis, step, kept))
        mask = wider
    return mask


def _depth_figures(s: dict[str, float]) -> Figures:
    pixels = s["pixels"]
    mse = s["squared_error"] / pixels
    variance = max(s["depth_squared"] / pixels - (s["depth"] / pixels) ** 2, 0.0)
    return {
        "depth_mse": mse,
        "depth_rmse": mse**0.5,
        "depth_mae": s["absolute_error"] / pixels,
        "depth_smooth_l1": s["smooth_l1"] / pixels,
        "depth_gradient": sum(s[f"gradient_{axis}"] / (s[f"pairs_{axis}"] or 1.0) for axis in "xy"),
        **({"depth_ssim": s["ssim"] / s["ssim_windows"]} if s["ssim_windows"] else {}),
        "depth_variance": variance,
        "depth_r2": 1 - mse / variance if variance else float(mse == 0),
    }


def _ratio_figures(s: dict[str, float]) -> Figures:
    valid = s["valid"]
    share: Figures = {"depth_valid": valid / s["pixels"]}
    if not valid:
        return share
    return {
        "depth_abs_rel": s["relative"] / valid,
        "depth_sq_rel": s["squared_relative"] / valid,
        "depth_rmse_log": (s["log_squared"] / valid) ** 0.5,
        "depth_log10": s["log_absolute"] / valid / math.log(10),
        "depth_silog": s["silog"] / s["silog_samples"],
        **{f"depth_delta{power}": s[f"delta{power}"] / valid for power in (1, 2, 3)},
        **share,
        "depth_floored": s["floored"] / valid,
    }


def _mask_figures(s: dict[str, float]) -> Figures:
    pixels, true, claimed, common = s["pixels"], s["object"], s["claimed"], s["common"]
    precision = _share(s["boundary_right"], s["boundary_claimed"], s["boundary"])
    recall = _share(s["boundary_found"], s["boundary"], s["boundary_claimed"])
    return {
        "mask_bce": s["bce"] / pixels,
        "mask_mse": s["mask_squared_error"] / pixels,
        "mask_smooth_l1": s["mask_squared_error"] / pixels / 2,
        "mask_iou": _share(common, true + claimed - common, 0),
        "mask_f1": _share(2 * common, true + claimed, 0),
        "mask_precision": _share(common, claimed, true),
        "mask_recall": _share(common, true, claimed),
        "mask_accuracy": (pixels - true - claimed + 2 * common) / pixels,
        "mask_boundary_f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "mask_coverage": true / pixels,
    }


def _share(part: float, whole: float, other: float) -> float:
    """part ÷ whole; where the whole is nothing, whether the `other` side has nothing either."""
    return part / whole if whole else float(other == 0)
