"""How good predictions are, as a metric of torchmetrics: figures that any number of processes reach together.

To be imported by what evaluates, when it does: torchmetrics imports matplotlib, and whatever else of its field is
installed, and a training that begins should not wait for that.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from dtrain.figures import Figures
from dtrain.model import Prediction
from dtrain.sample_sums import SUMS, figures_of, sample_sums

__all__ = ["SUMS", "DepthMaskMetrics", "figures_of", "sample_sums"]


class DepthMaskMetrics(Metric):
    """Figures of merit over all pixels of all samples seen; every pixel counts once, on whatever process.

    Depth, over all pixels, in units of depth in [0, 1]: depth_mse, depth_rmse, depth_mae, depth_smooth_l1 (β = 1),
    depth_gradient (mean absolute error of first differences, x plus y). depth_ssim: mean over all 11×11 windows, data
    range 1; left out under 11 pixels. depth_variance: of the true depth, the MSE of the best constant. depth_r2:
    1 − depth_mse / depth_variance (depth that is constant: 1 if predicted exactly, else 0).

    Depth, over pixels with true depth above `dtrain.figures.MIN_DEPTH`; depth_valid is their share, and without any
    the others are left out. depth_abs_rel, depth_sq_rel: of the prediction as it is. Of the prediction raised to at
    least MIN_DEPTH, which depth_floored says how often it was: depth_rmse_log (natural logarithm), depth_log10,
    depth_delta1 to 3 (share within a factor of 1.25, 1.25², 1.25³), and depth_silog: the standard deviation of
    log predicted − log true within a sample, averaged over the samples that have a valid pixel.

    Mask, all pixels: mask_bce in nats, mask_mse and mask_smooth_l1 of the probability. From counts of pixels (object:
    above 0.5) over the whole set, never averaged over samples: mask_iou, mask_f1, mask_precision, mask_recall,
    mask_accuracy, mask_coverage (true share of the object), mask_boundary_f1: of boundary pixels that lie within
    `boundary_tolerance` of the other boundary. `dtrain.sample_sums.figures_of` says what counts where nothing is there.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(SUMS), dtype=torch.float64), dist_reduce_fx="sum")
        self.latest = torch.zeros(0, len(SUMS), dtype=torch.float64)
        """The sums of each sample of the last batch, (B, len(SUMS))."""

    def update(self, prediction: Prediction, depth: Tensor, mask: Tensor) -> None:
        """Add a batch; `depth` and `mask` are true values, (B, 1, H, W) in [0, 1], the prediction of any size."""
        self.latest = sample_sums(prediction, depth, mask)
        self.sums += self.latest.sum(dim=0)

    def compute(self) -> Figures:
        """All figures by name. Raises ZeroDivisionError if no process has seen a sample."""
        return figures_of(self.sums)
