"""What evaluations come to, by name, and what predictors that look at nothing would. Plain numbers; imports nothing."""

Figures = dict[str, float]

MIN_DEPTH = 4 / 255
"""Relative and logarithmic figures of depth are over pixels whose true depth is above this.

From there on one grey level of 8 bits is less than 25% of the depth. It is also the least prediction that logarithms
and ratios are taken of.
"""


def trivial_figures(figures: Figures) -> dict[str, Figures]:
    """What predictors that look at nothing reach on the same samples, from the figures of any model on them.

    "mean depth" predicts the mean of the very samples it is judged on, "all background" an empty mask, "all object" a
    full one. `dtrain.constant_predictors` knows more of constants, from the grey levels of the truth.
    """
    variance, coverage = figures["depth_variance"], figures["mask_coverage"]
    empty = float(coverage == 0)
    return {
        "mean depth": {
            "depth_mse": variance,
            "depth_rmse": variance**0.5,
            "depth_smooth_l1": variance / 2,
            "depth_r2": 0.0 if variance else 1.0,
        },
        "all background": {
            "mask_iou": empty,
            "mask_f1": empty,
            "mask_precision": empty,
            "mask_recall": empty,
            "mask_accuracy": 1 - coverage,
        },
        "all object": {
            "mask_iou": coverage,
            "mask_f1": 2 * coverage / (1 + coverage),
            "mask_precision": coverage,
            "mask_recall": 1 - empty,
            "mask_accuracy": coverage,
        },
    }
