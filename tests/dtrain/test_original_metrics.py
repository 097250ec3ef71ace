"""The write-up's metrics as it logged them, against its procedure in NumPy, and what docs/metrics.md says of them."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain.data.loader import Batch
from dtrain.evaluator import Seen
from dtrain.metrics import DepthMaskMetrics, sample_sums
from dtrain.model import Prediction
from dtrain.original_metrics import Logged, OriginalMetrics
from dtrain.ssim import ssim_map
from dtrain.vote import Vote

from . import numpy_metrics

DOCS = Path(__file__).parents[2] / "docs/metrics.md"
SIDE, BATCH, SAMPLES = 32, 4, 32

NAMES = ("RMSE", "δ1", "δ2", "δ3", "log10", "SSIM-D")


def logged(predicted: Tensor, depth: Tensor, *, batch: int = BATCH, cuts: list[int] | None = None) -> dict[str, Logged]:
    """What comes of an epoch whose evaluation reads the samples in parts that end at `cuts`."""
    mask = torch.zeros_like(depth)
    metrics = OriginalMetrics(len(depth), batch)
    for start, stop in pairwise(cuts or [0, len(depth)]):
        rows = slice(start, stop)
        prediction = Prediction(predicted[rows], mask[rows])
        images = torch.zeros(stop - start, 6, *depth.shape[-2:])
        seen = Batch([f"bg1_fg_1_{row}" for row in range(start, stop)], images, depth[rows], mask[rows])
        metrics.add(Seen(seen, prediction, sample_sums(prediction, depth[rows], mask[rows]), start))
    return metrics.logged(Vote())


def in_numpy(predicted: Tensor, depth: Tensor, batch: int) -> dict[str, list[float]]:
    """The procedure itself: two buffers of zeros as large as the split, filled and judged batch after batch."""
    all_true, all_said = depth[:, 0].double().numpy(), predicted[:, 0].double().numpy()
    true, said = np.zeros_like(all_true), np.zeros_like(all_said)
    curves: dict[str, list[float]] = {name: [] for name in NAMES}
    for start in range(0, len(true), batch):
        rows = slice(start, start + batch)
        true[rows], said[rows] = all_true[rows], all_said[rows]
        with np.errstate(all="ignore"):
            ratio = np.maximum(true / said, said / true)
            curves["log10"].append(np.abs(np.log10(said) - np.log10(true)).mean())
        curves["RMSE"].append(np.sqrt(((true - said) ** 2).mean()))
        for power in (1, 2, 3):
            curves[f"δ{power}"].append((ratio < 1.25**power).mean())
        curves["SSIM-D"].append(1 - numpy_metrics.ssim(said[rows], true[rows], 255.0).mean())
    return curves


def pictures(count: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """True depth and a prediction that is 10% too near everywhere: a floor, and a box that stands at another place."""
    depth = torch.linspace(1, 0.2, SIDE).view(1, 1, SIDE, 1).repeat(count, 1, 1, SIDE)
    for row in range(count):
        left = row * 5 % (SIDE - 8)
        depth[row, 0, 12:24, left : left + 8] = depth[row, 0, 24, 0]
    return 0.9 * depth, depth


def right(predicted: Tensor, depth: Tensor) -> dict[str, float]:
    metrics = DepthMaskMetrics()
    metrics.update(Prediction(predicted, depth), depth, depth)
    return metrics.compute()


@pytest.mark.parametrize("batch", [1, 4, 5, 40])
def test_they_are_those_of_buffers_that_fill(batch: int) -> None:
    random = torch.Generator().manual_seed(3)
    _, depth = pictures()
    predicted = depth + 0.2 * torch.randn(depth.shape, generator=random)
    depth[5, 0, :4] = 0
    predicted[6, 0, :4] = 0
    expected = in_numpy(predicted, depth, batch)
    found = logged(predicted, depth, batch=batch)
    assert tuple(found) == NAMES
    for name, curve in expected.items():
        values = (found[name].first, found[name].mean, found[name].last)
        approx = pytest.approx((curve[0], np.mean(curve), curve[-1]), rel=1e-4, abs=1e-7, nan_ok=True)
        assert values == approx, name


@pytest.mark.parametrize("cuts", [[0, 16, 32], [0, 1, 2, 3, 30, 32], [0, 7, 32]])
def test_they_are_the_same_however_samples_are_read(cuts: list[int]) -> None:
    predicted, depth = pictures()
    whole, parts = logged(predicted, depth), logged(predicted, depth, cuts=cuts)
    for name in NAMES:
        assert vars(parts[name]) == pytest.approx(vars(whole[name]), nan_ok=True), name


def test_small_images_have_no_ssim() -> None:
    predicted, depth = pictures(4)
    assert tuple(logged(predicted[..., :8], depth[..., :8])) == NAMES[:-1]


def test_rmse_and_deltas_begin_near_0_and_understate_as_the_docs_say() -> None:
    predicted, depth = pictures()
    found, truth = logged(predicted, depth), right(predicted, depth)
    assert truth["depth_delta1"] == found["δ1"].last == 1.0, "10% too near is within 1.25 everywhere"
    assert found["δ1"].first == pytest.approx(BATCH / SAMPLES)
    assert found["RMSE"].first == pytest.approx(truth["depth_rmse"] * math.sqrt(BATCH / SAMPLES), rel=0.05)
    assert found["RMSE"].mean < 0.75 * truth["depth_rmse"]
    assert found["RMSE"].last == pytest.approx(truth["depth_rmse"])
    rmse, delta = found["RMSE"], found["δ1"]
    assert_documented(f"| RMSE | {rmse.first:.4f} | {rmse.mean:.4f} | {rmse.last:.4f} | {truth['depth_rmse']:.4f} |")
    assert_documented(f"| δ1 | {delta.first:.2%} | {delta.mean:.2%} | {delta.last:.2%} | {truth['depth_delta1']:.2%} |")


def test_log10_is_no_number_before_the_end_nor_after_one_negative_prediction() -> None:
    predicted, depth = pictures()
    clean = logged(predicted, depth)["log10"]
    assert math.isnan(clean.first)
    assert math.isnan(clean.mean)
    assert clean.last == pytest.approx(-math.log10(0.9), rel=1e-5)
    predicted[17, 0, 3, 5] = -0.001
    spoilt = logged(predicted, depth)["log10"]
    assert math.isnan(spoilt.last)
    figure = right(predicted, depth)["depth_log10"]
    assert figure == pytest.approx(-math.log10(0.9), rel=1e-2)
    assert_documented(f"| log10 | NaN | NaN | {clean.last:.4f}, NaN with one pixel at −0.001 | {figure:.4f} |")


def test_a_negative_prediction_counts_as_within_every_delta() -> None:
    _, depth = pictures()
    found = logged(-depth, depth)
    assert found["δ1"].last == 1.0
    assert right(-depth, depth)["depth_delta3"] < 0.05


def test_ssim_with_a_data_range_of_255_sees_no_difference_between_any_pictures() -> None:
    _, depth = pictures()
    random = torch.Generator().manual_seed(0)
    predictions = {
        "what is true": depth,
        "10% too near": 0.9 * depth,
        "grey, 0.5 everywhere": torch.full_like(depth, 0.5),
        "upside down": depth.flip(2),
        "noise": torch.rand(depth.shape, generator=random),
    }
    for name, predicted in predictions.items():
        original, loss = logged(predicted, depth)["SSIM-D"].mean, 1 - right(predicted, depth)["depth_ssim"]
        assert abs(original) < 0.02, name
        assert_documented(f"| {name} | {abs(original):.4f} | {abs(loss):.4f} |")
    assert 1 - right(predictions["noise"], depth)["depth_ssim"] > 0.9


def test_as_a_loss_it_hardly_pulls_as_the_docs_say() -> None:
    predicted, depth = pictures(4)
    pulls = {}
    for data_range in (1.0, 255.0):
        leaf = predicted.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(1 - ssim_map(leaf, depth, data_range=data_range).mean(), leaf)
        pulls[data_range] = float(gradient.abs().sum())
    assert_documented(f"its gradient is {pulls[1.0] / pulls[255.0]:.0f} times weaker")


def assert_documented(line: str) -> None:
    assert line in DOCS.read_text(), f"docs/metrics.md should say\n{line}"
