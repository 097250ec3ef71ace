"""The write-up's metrics as it logged them, flaws and all, for comparison with its logs. Never used to judge a model.

Its RMSE, log10 and δ were computed after each batch over a buffer of the whole split, of zeros to begin with, that the
batches filled one by one; its SSIM took the library's default data range of 255 for images in [0, 1]. docs/metrics.md
shows what came of that.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.evaluator import Seen, of_each_process
from dtrain.sample_sums import DELTA, SUMS
from dtrain.ssim import WINDOW, ssim_map
from dtrain.vote import Vote

SSIM_DATA_RANGE = 255.0

_COLUMNS = ("squared_error", "pixels", "delta1", "delta2", "delta3", "log10", "ssim_loss", "samples")


@dataclass(frozen=True)
class Logged:
    """A metric as a log shows it: after the first batch, the mean over all batches, and after the last one."""

    first: float
    mean: float
    last: float


class OriginalMetrics:
    """Sums by batch of the split in its order, `batch` samples each: (batches, 8) numbers, whatever the world size.

    A sample that can't be decoded leaves its place in the buffer to the next one of what is read with it.
    """

    def __init__(self, samples: int, batch: int) -> None:
        self.batch = batch
        self._sums = torch.zeros(math.ceil(samples / batch), len(_COLUMNS), dtype=torch.float64)

    def add(self, seen: Seen) -> None:
        """Take a batch, of any number of samples."""
        places = torch.arange(seen.first, seen.first + len(seen.sums)) // self.batch
        exact = seen.sums[:, [SUMS.index("squared_error"), SUMS.index("pixels")]]
        flawed = original_sums(seen.prediction.depth, seen.batch.depth).cpu()
        ones = torch.ones(len(exact), 1, dtype=torch.float64)
        self._sums.index_add_(0, places, torch.cat([exact, flawed, ones], dim=1))

    def logged(self, vote: Vote) -> dict[str, Logged]:
        """The metrics by the write-up's names, of all processes together; to be called by every process.

        log10 is NaN as soon as a prediction is negative, or where 0 was predicted for 0, as all over an unfilled
        buffer. SSIM-D is the loss, 1 − SSIM, of each batch by itself, and left out under 11 pixels.
        """
        sums = torch.stack(of_each_process(vote, self._sums)).sum(0)
        sums = sums[sums[:, _COLUMNS.index("samples")] > 0]
        squared, pixels, *deltas, log10, ssim_loss, samples = sums.unbind(1)
        whole = pixels.sum()
        filled = pixels.cumsum(0) == whole
        curves = {"RMSE": (squared.cumsum(0) / whole).sqrt()}
        curves |= {f"δ{power}": delta.cumsum(0) / whole for power, delta in enumerate(deltas, start=1)}
        curves["log10"] = torch.where(filled, log10.cumsum(0) / whole, math.nan)
        curves["SSIM-D"] = ssim_loss / samples
        return {
            name: Logged(float(curve[0]), float(curve.mean()), float(curve[-1]))
            for name, curve in curves.items()
            if name != "SSIM-D" or not curve.isnan().all()
        }


def original_sums(predicted: Tensor, depth: Tensor) -> Tensor:
    """Of each sample: pixels within δ1, δ2, δ3, the sum of log10 differences, and 1 − SSIM; (B, 5), float64.

    Over all pixels of (B, 1, H, W), with no floor and no mask. A ratio by 0 is infinite or NaN, and not within; one
    of a negative prediction is negative, so it is within all three. SSIM is NaN under 11 pixels.
    """
    predicted, depth = predicted.float(), depth.float()
    ratio = torch.maximum(predicted / depth, depth / predicted).flatten(1)
    log = (predicted.log10() - depth.log10()).abs()
    if min(depth.shape[-2:]) >= WINDOW:
        ssim = ssim_map(predicted, depth, data_range=SSIM_DATA_RANGE).mean((1, 2, 3), dtype=torch.float64)
    else:
        ssim = depth.new_full((len(depth),), math.nan, dtype=torch.float64)
    within = [(ratio < DELTA**power).sum(1).double() for power in (1, 2, 3)]
    return torch.stack([*within, log.flatten(1).sum(1, dtype=torch.float64), 1 - ssim], dim=1)
