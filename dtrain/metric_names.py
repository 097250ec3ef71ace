"""What each metric is called and means, for people. A table; computes nothing."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricName:
    """How a metric is shown: `format` is a format specification; `better` None where that is not known.

    `write_up` is what the original write-up calls it, where it does.
    """

    title: str
    meaning: str = ""
    better: Literal["lower", "higher"] | None = None
    format: str = ".6g"
    write_up: str = ""

    def show(self, value: float) -> str:
        """Return the value as text."""
        return format(value, self.format)


_DELTA = "share of pixels where predicted and true depth differ by a factor under "

_NAMES = {
    "loss": MetricName("Loss", "weighted sum that is trained on", "lower", ".4f"),
    "depth_mse": MetricName("Depth MSE", "mean squared error, depth in [0, 1]", "lower", ".5f", "L2-D"),
    "depth_rmse": MetricName("Depth RMSE", "root of the mean squared error", "lower", ".4f", "RMSE"),
    "depth_mae": MetricName("Depth MAE", "mean absolute error", "lower", ".4f"),
    "depth_smooth_l1": MetricName("Depth smooth L1", "½ error², beyond 1 the error − ½", "lower", ".5f", "SMOOTH-D"),
    "depth_gradient": MetricName("Depth gradient", "mean error of first differences", "lower", ".4f", "GRAD-D"),
    "depth_ssim": MetricName("Depth SSIM", "structural similarity, at most 1", "higher", ".4f", "SSIM-D"),
    "depth_l1": MetricName("Depth L1", "mean absolute error", "lower", ".4f"),
    "depth_ssim_loss": MetricName("Depth 1 − SSIM", "0 where all structure is right", "lower", ".4f"),
    "depth_silog_loss": MetricName("Depth SILog loss", "of the logarithms, scale half forgiven", "lower", ".4f"),
    "depth_smoothness": MetricName("Depth smoothness", "slopes where the image has none", "lower", ".4f"),
    "depth_variance": MetricName("Depth variance", "of the true depth: the data, not the model", None, ".5f"),
    "depth_r2": MetricName("Depth R²", "1 − MSE ÷ variance", "higher", ".4f"),
    "depth_abs_rel": MetricName("Depth AbsRel", "mean of error ÷ true depth", "lower", ".4f"),
    "depth_sq_rel": MetricName("Depth SqRel", "mean of squared error ÷ true depth", "lower", ".4f"),
    "depth_rmse_log": MetricName("Depth RMSE-log", "RMSE of the natural logarithms", "lower", ".4f"),
    "depth_log10": MetricName("Depth log10", "mean difference of the decimal logarithms", "lower", ".4f", "log10"),
    "depth_silog": MetricName("Depth SILog", "error of the logarithms, scale left free", "lower", ".4f"),
    "depth_delta1": MetricName("Depth δ1", _DELTA + "1.25", "higher", ".2%", "δ1"),
    "depth_delta2": MetricName("Depth δ2", _DELTA + "1.25²", "higher", ".2%", "δ2"),
    "depth_delta3": MetricName("Depth δ3", _DELTA + "1.25³", "higher", ".2%", "δ3"),
    "depth_valid": MetricName("Depth valid", "share of pixels that relative figures are over: the data", None, ".2%"),
    "depth_floored": MetricName("Depth floored", "share of those with a prediction below them", "lower", ".2%"),
    "mask_bce": MetricName("Mask BCE", "binary cross-entropy, nats a pixel", "lower", ".4f", "BCE-M"),
    "mask_mse": MetricName("Mask MSE", "mean squared error of the probability", "lower", ".5f", "L2-M"),
    "mask_smooth_l1": MetricName("Mask smooth L1", "½ error² of the probability", "lower", ".5f", "SMOOTH-L1-M"),
    "mask_l1": MetricName("Mask L1", "mean absolute error of the probability", "lower", ".4f"),
    "mask_ssim_loss": MetricName("Mask 1 − SSIM", "0 where all structure is right", "lower", ".4f"),
    "mask_gradient": MetricName("Mask gradient", "mean error of first differences", "lower", ".4f"),
    "mask_dice_loss": MetricName("Mask 1 − Dice", "of the probability", "lower", ".4f"),
    "mask_iou": MetricName("Mask IoU", "intersection ÷ union of the object's pixels", "higher", ".4f"),
    "mask_f1": MetricName("Mask F1", "Dice coefficient of the object's pixels", "higher", ".4f"),
    "mask_precision": MetricName("Mask precision", "share of predicted pixels that are right", "higher", ".2%"),
    "mask_recall": MetricName("Mask recall", "share of the object's pixels that are found", "higher", ".2%"),
    "mask_accuracy": MetricName("Mask accuracy", "share of all pixels that are right", "higher", ".2%"),
    "mask_boundary_f1": MetricName("Mask boundary F1", "of the object's outline, within a tolerance", "higher", ".4f"),
    "learning_rate": MetricName("Learning rate", "", None, ".3g"),
    "gradient_norm": MetricName("Gradient norm", "before clipping", None, ".3g"),
    "mask_coverage": MetricName("Mask coverage", "true share of the object: the data, not the model", None, ".2%"),
}


def metric_name(key: str) -> MetricName:
    """Return how to show the metric `key`; one that is not in the table is shown plainly, by its key."""
    return _NAMES.get(key, MetricName(key))
