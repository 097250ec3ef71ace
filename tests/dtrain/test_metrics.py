"""Figures against formulas in NumPy over the whole set; batches and processes change nothing."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtrain.best import CHOICES
from dtrain.figures import Figures, trivial_figures
from dtrain.metric_names import metric_name
from dtrain.metrics import SUMS, DepthMaskMetrics, figures_of, sample_sums
from dtrain.model import Prediction

from . import numpy_metrics

Samples = tuple[Prediction, Tensor, Tensor]

UNDEFINED_IN_SMALL = {"depth_ssim"}


def close(figures: dict[str, float]) -> Any:
    """The figures, as far as float32 differences tell."""
    return pytest.approx(figures, rel=2e-5, abs=2e-6)


def random_samples(count: int, height: int, width: int, seed: int = 5) -> Samples:
    """Every value is a multiple of 1/256 or a float32 that both sides are given; objects are rectangles."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, height, width)
    depth = torch.randint(0, 257, shape, generator=generator) / 256
    predicted = depth + torch.randint(-60, 61, shape, generator=generator) / 256
    mask, logits = torch.zeros(shape), torch.randn(shape, generator=generator) - 4
    for row in range(count):
        for plane, inside in ((mask[row, 0], 1.0), (logits[row, 0], 2.5)):
            top, left = (int(torch.randint(side // 2 + 1, (), generator=generator)) for side in (height, width))
            plane[top : top + height // 2 + 1, left : left + width // 2] = inside
    return Prediction(predicted, logits), depth, mask


@pytest.fixture
def samples() -> Samples:
    return random_samples(12, 13, 16)


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
    return figures == pytest.approx(others, rel=1e-7, abs=1e-12)


def in_numpy(samples: Samples) -> Figures:
    prediction, depth, mask = samples
    planes = (prediction.depth, prediction.mask_logits, depth, mask)
    return numpy_metrics.figures(*(plane[:, 0].double().numpy() for plane in planes))


@pytest.mark.parametrize(
    ("count", "height", "width"), [(12, 13, 16), (5, 11, 11), (3, 1, 1), (2, 1, 9), (4, 10, 40), (1, 64, 200)]
)
def test_figures_agree_with_numpy(count: int, height: int, width: int) -> None:
    for seed in range(3):
        samples = random_samples(count, height, width, seed)
        figures = seen(samples).compute()
        assert figures == close(in_numpy(samples))
        assert ("depth_ssim" in figures) == (min(height, width) >= 11)


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 13)),
    levels=st.lists(st.integers(-64, 300), min_size=1, max_size=24),
    true_levels=st.lists(st.integers(0, 256), min_size=1, max_size=24),
    logits=st.lists(st.integers(-96, 96), min_size=1, max_size=24),
    mask=st.lists(st.integers(0, 8), min_size=1, max_size=24),
)
def test_figures_agree_with_numpy_on_whatever_comes(
    sides: tuple[int, int, int], levels: list[int], true_levels: list[int], logits: list[int], mask: list[int]
) -> None:
    """Constant depth, depth of 0, negative predictions, predictions out of range, empty and full masks among them."""
    count, height, width = sides

    def fill(values: list[float]) -> Tensor:
        return torch.from_numpy(np.resize(np.array(values, np.float32), (count, 1, height, width)))

    samples = (
        Prediction(fill([level / 256 for level in levels]), fill([logit / 8 for logit in logits])),
        fill([level / 256 for level in true_levels]),
        fill([level / 8 for level in mask]),
    )
    assert seen(samples).compute() == close(in_numpy(samples))


def test_every_figure_has_a_name_and_can_be_asked_for(samples: Samples) -> None:
    figures = seen(samples).compute()
    for name in figures:
        assert metric_name(name).title != name, name
    assert set(CHOICES) == {name for name in figures if metric_name(name).better and name != "depth_floored"}


def test_iou_is_summed_over_the_set_and_not_averaged_over_samples() -> None:
    mask = torch.zeros(2, 1, 1, 8)
    mask[0, ..., :1] = 1
    mask[1, ..., :7] = 1
    logits = torch.full((2, 1, 1, 8), -5.0)
    logits[1, ..., :7] = 5
    figures = seen((Prediction(torch.zeros_like(mask), logits), torch.zeros_like(mask), mask)).compute()
    assert figures["mask_iou"] == pytest.approx(7 / 8)


def test_a_boundary_may_be_off_by_the_tolerance_and_no_more() -> None:
    def square(left: int) -> Tensor:
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 20:40, left : left + 20] = 1
        return mask

    found = []
    for shift in (0, 1, 2):
        mask, empty = square(20), torch.zeros(1, 1, 64, 64)
        figures = seen((Prediction(empty, 8 * square(20 + shift) - 4), empty, mask)).compute()
        found.append(figures["mask_boundary_f1"])
    assert found[:2] == [1.0, 1.0]
    assert 0.4 < found[2] < 0.7, "the two sides along the shift still agree"


@pytest.mark.parametrize("cuts", [[0, 1, 12], [0, 5, 6, 12], list(range(13))])
def test_batches_change_nothing(samples: Samples, cuts: list[int]) -> None:
    batches = [part(samples, slice(start, stop)) for start, stop in pairwise(cuts)]
    assert same(seen(*batches).compute(), seen(samples).compute())


def test_the_sums_of_samples_add_up_to_those_of_the_set(samples: Samples) -> None:
    sums = sample_sums(*samples)
    assert sums.shape == (12, len(SUMS))
    assert sums.dtype == torch.float64
    assert figures_of(sums.sum(0)) == seen(samples).compute()
    alone = figures_of(sums[3])
    assert alone == close(in_numpy(part(samples, slice(3, 4))))


def test_two_halves_come_to_the_figures_of_the_whole(samples: Samples) -> None:
    together = summed(seen(part(samples, slice(0, 7))), seen(part(samples, slice(7, 12))))
    assert same(together.compute(), seen(samples).compute())


def test_a_process_without_samples_adds_nothing(samples: Samples) -> None:
    assert same(summed(seen(samples), seen()).compute(), seen(samples).compute())


_TWO_PROCESSES = """
import json, sys, torch
import torch.distributed as dist
from dtrain.metrics import DepthMaskMetrics
from dtrain.model import Prediction

dist.init_process_group("gloo")
predicted, logits, depth, mask = torch.load(sys.argv[1], weights_only=True)
rows = slice(0, 5) if dist.get_rank() == 0 else slice(5, None)
metrics = DepthMaskMetrics()
metrics.update(Prediction(predicted[rows], logits[rows]), depth[rows], mask[rows])
with open(f"{sys.argv[1]}.{dist.get_rank()}", "w") as file:
    json.dump(metrics.compute(), file)
dist.destroy_process_group()
"""


def test_two_real_processes_come_to_the_figures_of_one(samples: Samples, tmp_path: Path) -> None:
    prediction, depth, mask = samples
    torch.save((*prediction, depth, mask), tmp_path / "samples")
    (tmp_path / "two.py").write_text(_TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, str(tmp_path / "two.py"), str(tmp_path / "samples")], check=True, timeout=100)
    for rank in (0, 1):
        assert same(json.loads((tmp_path / f"samples.{rank}").read_text()), seen(samples).compute())


def test_a_smaller_prediction_is_judged_at_the_size_of_the_truth(samples: Samples) -> None:
    _, depth, mask = samples
    small = Prediction(torch.full((12, 1, 2, 3), 0.25), torch.full((12, 1, 2, 3), 3.0))
    large = Prediction(torch.full_like(depth, 0.25), torch.full_like(depth, 3.0))
    assert seen((small, depth, mask)).compute() == pytest.approx(seen((large, depth, mask)).compute(), rel=1e-6)
    row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    ramp = torch.tensor([0.0, 0.25, 0.75, 1.0]).view(1, 1, 1, 4)
    exact = seen((Prediction(row, row - 0.5), ramp, (ramp > 0.5).float())).compute()
    assert (exact["depth_mse"], exact["mask_iou"]) == (0, 1)


def test_trivial_predictors_are_what_such_predictions_come_to(samples: Samples) -> None:
    _, depth, mask = samples
    trivial = trivial_figures(seen(samples).compute())
    predictions = {
        "mean depth": Prediction(depth.double().mean().float().expand_as(depth), mask),
        "all background": Prediction(depth, torch.full_like(mask, -9)),
        "all object": Prediction(depth, torch.full_like(mask, 9)),
    }
    assert trivial.keys() == predictions.keys()
    for name, figures in trivial.items():
        found = seen((predictions[name], depth, mask)).compute()
        assert figures == close({figure: found[figure] for figure in figures}), name


@pytest.mark.parametrize(("logit", "right"), [(-3.0, 1.0), (3.0, 0.0)])
def test_masks_without_any_object(logit: float, right: float) -> None:
    empty = torch.zeros(2, 1, 4, 4)
    figures = seen((Prediction(empty, empty + logit), torch.rand(2, 1, 4, 4), empty)).compute()
    counted = ("mask_iou", "mask_f1", "mask_precision", "mask_recall", "mask_accuracy")
    assert [figures[name] for name in counted] == [right] * 5
    assert trivial_figures(figures)["all background"]["mask_iou"] == 1.0


def test_depth_that_is_nowhere_valid_has_no_relative_figures() -> None:
    near = torch.full((2, 1, 12, 12), 4 / 255)
    figures = seen((Prediction(near, near), near, near)).compute()
    assert figures["depth_valid"] == 0
    assert not [name for name in figures if "rel" in name or "log" in name or "delta" in name]
    assert figures["depth_mse"] == 0
    json.dumps(figures, allow_nan=False)


def test_negative_predictions_are_floored_for_logarithms_and_counted() -> None:
    depth = torch.full((1, 1, 2, 2), 0.5)
    predicted = torch.tensor([-1.0, 0.0, 0.5, 0.25]).view(1, 1, 2, 2)
    figures = seen((Prediction(predicted, depth), depth, depth)).compute()
    assert figures["depth_floored"] == 0.5
    assert figures["depth_delta1"] == 0.25
    assert figures["depth_abs_rel"] == (3 + 1 + 0 + 0.5) / 4
    floor = np.log10(0.5 / (4 / 255))
    assert figures["depth_log10"] == pytest.approx((2 * floor + np.log10(2)) / 4)


def test_constant_depth_has_no_variance_whatever_the_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        value = float(torch.rand((), generator=generator))
        batches = [torch.full((30, 1, 8 * side, 8), value) for side in (1, 2, 3)]
        figures = seen(*[(Prediction(depth, depth), depth, depth) for depth in batches]).compute()
        trivial = trivial_figures(figures)
        assert 0 <= figures["depth_variance"] < 1e-12
        assert 0 <= trivial["mean depth"]["depth_rmse"] < 1e-6
        json.dumps([figures, trivial], allow_nan=False)


def test_half_precision_is_summed_exactly() -> None:
    depth = torch.full((40, 1, 64, 64), 0.5)
    predicted = torch.full((40, 1, 64, 64), 0.25, dtype=torch.bfloat16)
    mask = torch.ones_like(depth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        figures = seen((Prediction(predicted, predicted), depth, mask)).compute()
    assert figures["depth_mse"] == 0.0625
    assert figures["depth_mae"] == 0.25
    assert figures["depth_delta3"] == 0
    assert figures["mask_coverage"] == 1.0


@pytest.mark.parametrize("where", ["depth", "mask"])
def test_a_prediction_that_is_no_number_is_not_hidden(samples: Samples, where: str) -> None:
    prediction, depth, mask = samples
    (prediction.depth if where == "depth" else prediction.mask_logits)[2, 0, 3, 4] = torch.nan
    figures = seen((prediction, depth, mask)).compute()
    assert np.isnan(figures["depth_mse" if where == "depth" else "mask_bce"])
