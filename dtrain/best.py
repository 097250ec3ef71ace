"""Which checkpoints were the best, by the figures of their evaluations. Knows no files."""

import math
from collections.abc import Mapping

from dtrain.metric_names import metric_name

CHOICES = (
    *("depth_mse", "depth_rmse", "depth_mae", "depth_smooth_l1", "depth_gradient", "depth_ssim", "depth_r2"),
    *("depth_abs_rel", "depth_sq_rel", "depth_rmse_log", "depth_log10", "depth_silog"),
    *("depth_delta1", "depth_delta2", "depth_delta3"),
    *("mask_iou", "mask_f1", "mask_precision", "mask_recall", "mask_accuracy", "mask_boundary_f1"),
    *("mask_bce", "mask_mse", "mask_smooth_l1"),
)
"""Figures by which one checkpoint, or one sample, can be better than another.

Some are missing where they are not defined, as `dtrain.sample_sums.figures_of` says.
"""


def of_last_size(evaluated: Mapping[int, tuple[int, float]]) -> dict[int, float]:
    """Figures by step of (image size, figure) by step: those of the size that was evaluated last.

    Figures of other sizes can't be compared with them: small images are easier.
    """
    if not evaluated:
        return {}
    last, _ = evaluated[max(evaluated)]
    return {step: figure for step, (size, figure) in evaluated.items() if size == last}


def best_steps(figures: Mapping[int, float], metric: str, count: int) -> list[int]:
    """The `count` best steps by `figures` of one metric, the best first; of equals the later one.

    What is not a number is the worst.
    """
    sign = 1 if metric_name(metric).better == "higher" else -1

    def rank(step: int) -> tuple[bool, float, int]:
        value = sign * figures[step]
        return (False, 0.0, step) if math.isnan(value) else (True, value, step)

    return sorted(figures, key=rank, reverse=True)[:count]
