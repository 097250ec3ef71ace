"""Which checkpoints were the best, by the figures of their evaluations. Knows no files."""

import math
from collections.abc import Mapping

from dtrain.metric_names import metric_name

CHOICES = ("depth_mse", "depth_rmse", "depth_mae", "depth_r2", "mask_iou", "mask_accuracy", "mask_bce")
"""Figures of every evaluation by which one checkpoint can be better than another."""


def best_steps(figures: Mapping[int, float], metric: str, count: int) -> list[int]:
    """The `count` best steps by `figures` of one metric, the best first; of equals the later one.

    What is not a number is the worst.
    """
    sign = 1 if metric_name(metric).better == "higher" else -1

    def rank(step: int) -> tuple[bool, float, int]:
        value = sign * figures[step]
        return (False, 0.0, step) if math.isnan(value) else (True, value, step)

    return sorted(figures, key=rank, reverse=True)[:count]
