"""What constant predictors come to on a split, from how often each grey level is true there. Sees no prediction."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtrain.evaluator import Seen, of_each_process
from dtrain.figures import MIN_DEPTH, Figures, trivial_figures
from dtrain.metric_names import metric_name
from dtrain.vote import Vote

LEVELS = 256
"""Truth comes from images of 8 bits. Where it was interpolated to another size, the nearest level counts."""

Numbers = NDArray[np.float64]

_VALUES: Numbers = np.arange(LEVELS) / (LEVELS - 1)


class TrueLevels:
    """How many pixels of the true depth (row 0) and mask (row 1) are nearest to each level: int64, (2, LEVELS)."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2, LEVELS, dtype=torch.int64)

    def add(self, seen: Seen) -> None:
        """Take a batch."""
        self.counts += torch.stack([_count(seen.batch.depth), _count(seen.batch.mask)]).cpu()

    def gathered(self, vote: Vote) -> Numbers:
        """The counts of all processes together, the same on each; to be called by every process."""
        return torch.stack(of_each_process(vote, self.counts)).sum(0).double().numpy()


def trivial_predictors(figures: Figures, levels: Numbers) -> dict[str, Figures]:
    """`trivial_figures`, and what the levels of the truth, (2, LEVELS), tell besides of constants.

    Each figure of "best constant" is that of the constant that is best for it: for the mask, and for MSE, RMSE and
    smooth L1 of depth, of all constants; for the other figures of depth, of 256 levels, which one between two levels
    may beat slightly. All know the very samples that they are judged on, which flatters them.
    """
    trivial = trivial_figures(figures)
    depth, mask = levels
    exact = trivial.pop("mean depth")
    mean = constant_figures(depth, _mean(_VALUES, depth)) | exact
    best = _best([constant_figures(depth, float(value)) for value in _VALUES]) | exact
    best |= _best([trivial["all background"], trivial["all object"]]) | best_probability(mask)
    return {"mean depth": mean, "best constant": best, **trivial}


def best_probability(levels: Numbers) -> Figures:
    """The figures of a mask that is its own mean everywhere, which is best for each of them."""
    mean = _mean(_VALUES, levels)
    variance = _mean((_VALUES - mean) ** 2, levels)
    entropy = -sum(p * math.log(p) for p in (mean, 1 - mean) if p > 0)
    return {"mask_bce": entropy, "mask_mse": variance, "mask_smooth_l1": variance / 2}


def constant_figures(levels: Numbers, constant: float) -> Figures:
    """The figures of depth of a predictor that says `constant` everywhere, where pixels have the `levels`, (LEVELS,).

    They are those of `DepthMaskMetrics` as far as they follow from single pixels; relative and logarithmic ones are
    left out without a valid pixel.
    """
    error = np.abs(constant - _VALUES)
    mse = _mean(error**2, levels)
    figures = {"depth_mse": mse, "depth_rmse": mse**0.5, "depth_mae": _mean(error, levels)}
    valid = np.rint(MIN_DEPTH * (LEVELS - 1)) < np.arange(LEVELS)
    counts, true, error = levels[valid], _VALUES[valid], error[valid]
    if not counts.sum():
        return figures
    log = np.abs(np.log(max(constant, MIN_DEPTH) / true))
    return {
        **figures,
        "depth_abs_rel": _mean(error / true, counts),
        "depth_sq_rel": _mean(error**2 / true, counts),
        "depth_rmse_log": _mean(log**2, counts) ** 0.5,
        "depth_log10": _mean(log, counts) / float(np.log(10)),
        **{f"depth_delta{power}": _mean(log < power * np.log(1.25), counts) for power in (1, 2, 3)},
    }


def _mean(values: NDArray[np.generic], counts: Numbers) -> float:
    return float(np.average(values.astype(np.float64), weights=counts))


def _best(predictors: list[Figures]) -> Figures:
    """Of each figure the best."""

    def best(name: str) -> float:
        choose = max if metric_name(name).better == "higher" else min
        return choose(figures[name] for figures in predictors)

    return {name: best(name) for name in predictors[0]}


def _count(plane: Tensor) -> Tensor:
    return torch.bincount((plane.flatten() * (LEVELS - 1)).round().long(), minlength=LEVELS)
