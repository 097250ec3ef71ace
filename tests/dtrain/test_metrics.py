"""Figures against formulas in NumPy; batches and processes change nothing."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain.figures import Figures, trivial_figures
from dtrain.metrics import DepthMaskMetrics
from dtrain.model import Prediction

Samples = tuple[Prediction, Tensor, Tensor]


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(5)
    shape = (12, 1, 6, 10)
    depth, predicted = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    mask = (torch.rand(shape, generator=generator) > 0.7).float()
    logits = 3 * torch.randn(shape, generator=generator)
    return Prediction(predicted, logits), depth, mask


def part(samples: Samples, rows: slice) -> Samples:
    prediction, depth, mask = samples
    return Prediction(prediction.depth[rows], prediction.mask_logits[rows]), depth[rows], mask[rows]


def seen(*batches: Samples) -> DepthMaskMetrics:
    metrics = DepthMaskMetrics()
    for batch in batches:
        metrics.update(*batch)
    return metrics


def summed(one: DepthMaskMetrics, other: DepthMaskMetrics) -> DepthMaskMetrics:
    """`one` with the states of both, as torchmetrics adds them up over processes."""
    for name in one.metric_state:
        setattr(one, name, getattr(one, name) + getattr(other, name))
    return one


def same(figures: Figures, others: Figures) -> bool:
    return figures == pytest.approx(others, rel=1e-12)


def test_figures_agree_with_numpy(samples: Samples) -> None:
    prediction, depth, mask = samples
    predicted, true = prediction.depth.double().numpy(), depth.double().numpy()
    logits, inside = prediction.mask_logits.double().numpy(), mask.numpy() > 0.5
    probability = 1 / (1 + np.exp(-logits))
    claimed = probability > 0.5
    mse = ((predicted - true) ** 2).mean()

    figures = seen(samples).compute()

    expected = {
        "depth_mse": mse,
        "depth_rmse": np.sqrt(mse),
        "depth_mae": np.abs(predicted - true).mean(),
        "depth_variance": true.var(),
        "depth_r2": 1 - mse / true.var(),
        "mask_iou": (claimed & inside).sum() / (claimed | inside).sum(),
        "mask_accuracy": (claimed == inside).mean(),
        "mask_bce": -np.where(inside, np.log(probability), np.log(1 - probability)).mean(),
        "mask_coverage": inside.mean(),
    }
    assert figures == pytest.approx(expected, rel=1e-9)


def test_iou_is_summed_over_the_set_and_not_averaged_over_samples() -> None:
    mask = torch.zeros(2, 1, 1, 8)
    mask[0, ..., :1] = 1
    mask[1, ..., :7] = 1
    logits = torch.full((2, 1, 1, 8), -5.0)
    logits[1, ..., :7] = 5
    figures = seen((Prediction(torch.zeros_like(mask), logits), torch.zeros_like(mask), mask)).compute()
    assert figures["mask_iou"] == pytest.approx(7 / 8)


@pytest.mark.parametrize("cuts", [[0, 1, 12], [0, 5, 6, 12], list(range(13))])
def test_batches_change_nothing(samples: Samples, cuts: list[int]) -> None:
    batches = [part(samples, slice(start, stop)) for start, stop in pairwise(cuts)]
    assert same(seen(*batches).compute(), seen(samples).compute())


def test_two_processes_come_to_the_figures_of_one(samples: Samples) -> None:
    together = summed(seen(part(samples, slice(0, 7))), seen(part(samples, slice(7, 12))))
    assert int(together.samples) == 12
    assert same(together.compute(), seen(samples).compute())


def test_a_process_without_samples_adds_nothing(samples: Samples) -> None:
    assert same(summed(seen(samples), seen()).compute(), seen(samples).compute())


def test_trivial_predictors_are_what_such_predictions_come_to(samples: Samples) -> None:
    _, depth, mask = samples
    trivial = trivial_figures(seen(samples).compute())

    mean = seen((Prediction(depth.mean().expand_as(depth), mask), depth, mask)).compute()
    for name, figure in trivial["mean depth"].items():
        assert figure == pytest.approx(mean[name], rel=1e-6, abs=1e-6), name
    nothing = seen((Prediction(depth, torch.full_like(mask, -9)), depth, mask)).compute()
    for name, figure in trivial["all background"].items():
        assert figure == pytest.approx(nothing[name]), name
    assert set(trivial["mean depth"]) == {"depth_mse", "depth_rmse", "depth_r2"}
    assert set(trivial["all background"]) == {"mask_iou", "mask_accuracy"}


@pytest.mark.parametrize(("logit", "iou", "accuracy"), [(-3.0, 1.0, 1.0), (3.0, 0.0, 0.0)])
def test_iou_without_any_object(logit: float, iou: float, accuracy: float) -> None:
    empty = torch.zeros(2, 1, 4, 4)
    figures = seen((Prediction(empty, empty + logit), torch.rand(2, 1, 4, 4), empty)).compute()
    assert figures["mask_iou"] == iou
    assert figures["mask_accuracy"] == accuracy
    assert trivial_figures(figures)["all background"]["mask_iou"] == 1.0


def test_constant_depth_has_no_variance_whatever_the_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        value = float(torch.rand((), generator=generator))
        batches = [torch.full((30, 1, 8 * side, 8), value) for side in (1, 2, 3)]
        figures = seen(*[(Prediction(depth, depth), depth, depth) for depth in batches]).compute()
        trivial = trivial_figures(figures)
        assert 0 <= figures["depth_variance"] < 1e-12
        assert 0 <= trivial["mean depth"]["depth_rmse"] < 1e-6
        json.dumps([figures, trivial])


def test_half_precision_is_summed_exactly() -> None:
    depth = torch.full((40, 1, 64, 64), 0.5)
    predicted = torch.full((40, 1, 64, 64), 0.25, dtype=torch.bfloat16)
    mask = torch.ones_like(depth)
    figures = seen((Prediction(predicted, predicted), depth, mask)).compute()
    assert figures["depth_mse"] == 0.0625
    assert figures["depth_mae"] == 0.25
    assert figures["mask_coverage"] == 1.0
