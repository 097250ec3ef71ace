"""How good predictions are: sums over pixels, so that any number of processes gives the same figures.

To be imported by what evaluates, when it does: torchmetrics imports matplotlib, and whatever else of its field is
installed, and a training that begins should not wait for that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from dtrain.figures import Figures
from dtrain.model import Prediction

MASK_THRESHOLD = 0.5


class DepthMaskMetrics(Metric):
    """Figures of merit over all pixels of all samples seen; every pixel counts once, on whatever process.

    depth_mse, depth_rmse, depth_mae: of depth in [0, 1], over all pixels. depth_variance: of the true depth, the MSE
    of the best constant. depth_r2: 1 − depth_mse / depth_variance (depth
    that is constant: 1 if predicted exactly, else 0). mask_iou: true and predicted object pixels
    (threshold 0.5) in common over those in either, summed over the set. mask_accuracy: share of pixels on the right
    side of 0.5. mask_bce: binary cross-entropy in nats. mask_coverage: share of true object pixels.
    """

    full_state_update = False
    samples: Tensor
    pixels: Tensor
    squared_error: Tensor
    absolute_error: Tensor
    depth_sum: Tensor
    depth_squared_sum: Tensor
    bce_sum: Tensor
    intersection: Tensor
    union: Tensor
    correct: Tensor
    covered: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("samples", "pixels", "intersection", "union", "correct", "covered"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("squared_error", "absolute_error", "depth_sum", "depth_squared_sum", "bce_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Prediction, depth: Tensor, mask: Tensor) -> None:
        """Add a batch; `depth` and `mask` are true values, (B, 1, H, W) in [0, 1]."""
        error = prediction.depth.double() - depth.double()
        self.squared_error += error.square().sum()
        self.absolute_error += error.abs().sum()
        self.depth_sum += depth.double().sum()
        self.depth_squared_sum += depth.double().square().sum()
        logits = prediction.mask_logits.double()
        self.bce_sum += F.binary_cross_entropy_with_logits(logits, mask.double(), reduction="sum")
        predicted, true = logits > 0, mask > MASK_THRESHOLD
        self.intersection += (predicted & true).sum()
        self.union += (predicted | true).sum()
        self.correct += (predicted == true).sum()
        self.covered += true.sum()
        self.samples += len(depth)
        self.pixels += depth.numel()

    def compute(self) -> Figures:
        """All figures by name. An empty union counts as IoU 1: nothing was there and nothing was claimed."""
        pixels = float(self.pixels)
        mse = float(self.squared_error) / pixels
        variance = self._depth_variance()
        return {
            "depth_mse": mse,
            "depth_rmse": mse**0.5,
            "depth_mae": float(self.absolute_error) / pixels,
            "depth_variance": variance,
            "depth_r2": 1 - mse / variance if variance else float(mse == 0),
            "mask_iou": float(self.intersection) / float(self.union) if self.union else 1.0,
            "mask_accuracy": float(self.correct) / pixels,
            "mask_bce": float(self.bce_sum) / pixels,
            "mask_coverage": float(self.covered) / pixels,
        }

    def _depth_variance(self) -> float:
        mean = float(self.depth_sum) / float(self.pixels)
        return max(float(self.depth_squared_sum) / float(self.pixels) - mean**2, 0.0)
