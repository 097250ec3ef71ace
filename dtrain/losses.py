"""What is minimised: any weighted sum of losses of depth and mask, each by its name. Pure functions of tensors.

Every loss is a mean over the samples of a figure of each sample alone. So the mean over micro-batches, weighted by
their numbers of samples, is that of the whole batch, however it is cut. `docs/losses.md` says when to use which.
"""

import math
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.config import LossConfig
from dtrain.figures import MIN_DEPTH
from dtrain.loss_names import SMALLEST_SIDE, figure_name
from dtrain.model import Prediction
from dtrain.ssim import ssim_map

SILOG_LAMBDA = 0.5
DICE_SMOOTHING = 1.0
"""Pixels added to both counts, so that an empty mask predicted as empty costs nothing."""


class Criterion:
    """The loss of a configuration."""

    def __init__(self, config: LossConfig) -> None:
        self._config = config
        self._weights = [*config.depth.values(), *config.mask.values()]
        self._terms = {
            **{figure_name("depth", name): _DEPTH[name] for name in config.depth},
            **{figure_name("mask", name): _MASK[name] for name in config.mask},
        }
        self.names: tuple[str, ...] = ("loss", *self._terms)
        """What the figures are, in their order: the weighted sum, then its terms."""

    def __call__(self, prediction: Prediction, *, depth: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """The figures `names`, shape (len(names),), float32: scale · Σ weight · term, then the terms, unweighted.

        `depth` and `mask` are what is true, (B, 1, H, W) in [0, 1]; `image` is fgbg, (B, 3, H, W) in [0, 1]; all of
        the size of the prediction. Whatever the prediction's dtype, all is computed in float32, also under autocast.
        The mean over micro-batches, weighted by their samples, is the value of the batch for each of them. Raises
        ValueError if the prediction is smaller than a loss can take (`dtrain.loss_names.SMALLEST_SIDE`).
        """
        self._check_size(prediction)
        with torch.autocast(depth.device.type, enabled=False):
            planes = _Planes(prediction, depth, mask, image)
            terms = [term(planes) for term in self._terms.values()]
            weighted = [weight * term for weight, term in zip(self._weights, terms, strict=True)]
            return torch.stack([self._config.scale * sum(weighted[1:], weighted[0]), *terms])

    def term(self, name: str, prediction: Prediction, *, depth: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """One of `names` but the first, unweighted, a scalar; no other is computed. Arguments as those of a call."""
        with torch.autocast(depth.device.type, enabled=False):
            return self._terms[name](_Planes(prediction, depth, mask, image))

    def _check_size(self, prediction: Prediction) -> None:
        side = min(prediction.size)
        for name in (*self._config.depth, *self._config.mask):
            if side < SMALLEST_SIDE.get(name, 1):
                raise ValueError(
                    f"a prediction of {prediction.size}: the loss {name} needs sides of at least "
                    f"{SMALLEST_SIDE[name]} pixels"
                )


def gradient_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of the differences of neighbours in x, plus that of those in y; (B, C, H, W) → scalar."""
    error = predicted - true
    return _along_x(error).abs().mean() + _along_y(error).abs().mean()


def ssim_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """1 − mean SSIM, for a data range of 1; (B, C, H, W) → scalar in [0, 2]."""
    return 1 - ssim_map(predicted, true).mean()


def silog_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Scale-invariant error of logarithms, (B, 1, H, W) → scalar, at least 0.

    Eigen, Puhrsch, Fergus: Depth map prediction from a single image using a multi-scale deep network (2014), eq. 4:
    mean of d² − λ · (mean of d)² with d = log predicted − log true and λ = 0.5, for each sample, then the mean over
    samples. The logarithm is `safe_log` of both.
    """
    d = safe_log(predicted) - safe_log(true)
    mean = d.mean((1, 2, 3), keepdim=True)
    return ((d - mean).square() + (1 - SILOG_LAMBDA) * mean.square()).mean()


def safe_log(x: Tensor, epsilon: float = MIN_DEPTH) -> Tensor:
    """Natural logarithm from `epsilon` on; below, its curve turned by 180° about that point: 2 log ε − log(2ε − x).

    Finite for every finite x, also at 0 and below. It rises everywhere and has no kink, so a prediction that is
    negative still gets a gradient that lifts it; that is never steeper than 1/ε.
    """
    below = x < epsilon
    log = torch.where(below, 2 * epsilon - x, x).log()
    return torch.where(below, 2 * math.log(epsilon) - log, log)


def smoothness_loss(depth: Tensor, image: Tensor) -> Tensor:
    """Mean of |∂x depth| · exp(−|∂x image|), plus the same in y, |∂ image| a mean over channels; → scalar, ≥ 0.

    Godard, Mac Aodha, Brostow: Unsupervised monocular depth estimation with left-right consistency (2017), eq. 3.
    `depth` (B, 1, H, W) is plain, not divided by its mean: true depth fixes its scale, so it can't escape this loss by
    shrinking, and the mean of a prediction may be 0. Does not look at what is true.
    """
    in_x = _along_x(depth).abs() * torch.exp(-_along_x(image).abs().mean(1, keepdim=True))
    in_y = _along_y(depth).abs() * torch.exp(-_along_y(image).abs().mean(1, keepdim=True))
    return in_x.mean() + in_y.mean()


def dice_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1) over the pixels of a sample, then the mean over samples; in [0, 1].

    Milletari, Navab, Ahmadi: V-Net (2016), with plain sums below and one pixel added to both sides. (B, 1, H, W).
    """
    common = (probability * mask).sum((1, 2, 3))
    total = probability.sum((1, 2, 3)) + mask.sum((1, 2, 3))
    return (1 - (2 * common + DICE_SMOOTHING) / (total + DICE_SMOOTHING)).mean()


def _along_x(x: Tensor) -> Tensor:
    return x[..., :, 1:] - x[..., :, :-1]


def _along_y(x: Tensor) -> Tensor:
    return x[..., 1:, :] - x[..., :-1, :]


class _Planes:
    """What is predicted and what is true, in float32; each is made when a loss first asks for it."""

    def __init__(self, prediction: Prediction, depth: Tensor, mask: Tensor, image: Tensor) -> None:
        self._prediction = prediction
        self._truth = depth, mask, image

    @cached_property
    def predicted(self) -> Tensor:
        return self._prediction.depth.float()

    @cached_property
    def logits(self) -> Tensor:
        return self._prediction.mask_logits.float()

    @cached_property
    def probability(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @cached_property
    def depth(self) -> Tensor:
        return self._truth[0].float()

    @cached_property
    def mask(self) -> Tensor:
        return self._truth[1].float()

    @cached_property
    def image(self) -> Tensor:
        return self._truth[2].float()


_Loss = Callable[[Tensor, Tensor], Tensor]
_Term = Callable[[_Planes], Tensor]


def _of_depth(loss: _Loss) -> _Term:
    return lambda planes: loss(planes.predicted, planes.depth)


def _of_mask(loss: _Loss) -> _Term:
    return lambda planes: loss(planes.probability, planes.mask)


_EITHER: dict[str, _Loss] = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "ssim": ssim_loss,
    "gradient": gradient_loss,
}
_DEPTH: dict[str, _Term] = {
    **{name: _of_depth(loss) for name, loss in _EITHER.items()},
    "silog": _of_depth(silog_loss),
    "smoothness": lambda planes: smoothness_loss(planes.predicted, planes.image),
}
_MASK: dict[str, _Term] = {
    **{name: _of_mask(loss) for name, loss in _EITHER.items()},
    "dice": _of_mask(dice_loss),
    "bce": lambda planes: F.binary_cross_entropy_with_logits(planes.logits, planes.mask),
}
