"""What evaluations come to, by name, and what predictors that look at nothing would. Plain numbers; imports nothing."""

Figures = dict[str, float]


def trivial_figures(figures: Figures) -> dict[str, Figures]:
    """What predictors that look at nothing reach on the same samples, from the figures of any model on them.

    "mean depth" predicts the mean of the very samples it is judged on, "all background" an empty mask.
    """
    variance, coverage = figures["depth_variance"], figures["mask_coverage"]
    return {
        "mean depth": {"depth_mse": variance, "depth_rmse": variance**0.5, "depth_r2": 0.0},
        "all background": {"mask_iou": 0.0 if coverage else 1.0, "mask_accuracy": 1 - coverage},
    }
