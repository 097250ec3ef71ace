"""Which checkpoints were the best, by the figures of their evaluations. Knows no files."""

import math
from collections.abc import Mapping

HIGHER_IS_BETTER = {
    "depth_mse": False,
    "depth_rmse": False,
    "depth_mae": False,
    "depth_r2": True,
    "mask_iou": True,
    "mask_accuracy": True,
    "mask_bce": False,
}
"""The figures by which a checkpoint can be better than another."""


def best_steps(figures: Mapping[int, float], metric: str, count: int) -> list[int]:
    """The `count` best steps, the best first; of equals the later one. What is not a number is the worst."""

    def rank(step: int) -> tuple[float, int]:
        value = figures[step]
        if math.isnan(value):
            return (-math.inf, step)
        return (value if HIGHER_IS_BETTER[metric] else -value, step)

    return sorted(figures, key=rank, reverse=True)[:count]
