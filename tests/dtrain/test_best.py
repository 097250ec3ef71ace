"""Which checkpoints are kept for being the best."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtrain.best import CHOICES, best_steps, of_last_size
from dtrain.config import CheckpointConfig
from dtrain.metrics import DepthMaskMetrics
from dtrain.model import Prediction


def figures(error: float) -> dict[str, float]:
    """What an evaluation says of depth that is off by so much, up and down in turns, and of a mask that leans by it."""
    row, column = torch.arange(16.0).view(-1, 1), torch.arange(16.0)
    depth = ((16 * row + column) / 255).view(1, 1, 16, 16)
    up_and_down = 1 - 2 * ((row + column) % 2)
    leaning = column - (error * row * 0.8).round()
    mask = ((column < 8) & (row >= 0)).float().view(1, 1, 16, 16)
    claimed = ((leaning >= 0) & (leaning < 8)).float().view(1, 1, 16, 16)
    metrics = DepthMaskMetrics()
    metrics.update(Prediction(depth + error * up_and_down, 4 * claimed - 2), depth, mask)
    return metrics.compute()


@pytest.mark.parametrize("metric", CHOICES)
def test_the_best_is_the_one_with_the_smallest_error(metric: str) -> None:
    errors = {10: 0.4, 20: 0.1, 30: 0.3, 40: 0.2}
    found = {step: figures(error)[metric] for step, error in errors.items()}
    assert best_steps(found, metric, 4) == [20, 40, 30, 10]


def test_a_configuration_may_name_just_those() -> None:
    for metric in CHOICES:
        assert CheckpointConfig(best_metric=metric).best_metric == metric
    for metric in ("depth_variance", "mask_coverage", "loss", ""):
        with pytest.raises(ValueError, match=r"expected one of depth_mse, .*mask_iou"):
            CheckpointConfig(best_metric=metric)


def test_only_those_of_the_image_size_that_was_evaluated_last_are_compared() -> None:
    evaluated = {10: (32, 0.01), 20: (32, 0.02), 30: (64, 0.05), 40: (64, 0.04)}
    assert of_last_size(evaluated) == {30: 0.05, 40: 0.04}
    assert of_last_size({10: (32, 0.01)}) == {10: 0.01}
    assert of_last_size({}) == {}


def test_of_equals_the_later_one() -> None:
    assert best_steps({1: 0.5, 2: 0.7, 3: 0.7, 4: 0.5}, "mask_iou", 3) == [3, 2, 4]
    assert best_steps({1: 0.0, 2: -0.0}, "depth_mse", 1) == [2]


@pytest.mark.parametrize("metric", ["mask_iou", "depth_mse"])
def test_what_is_not_a_number_is_the_worst(metric: str) -> None:
    found = {1: math.inf, 2: -math.inf, 3: 0.5, 4: math.nan, 5: math.nan}
    assert best_steps(found, metric, 5)[3:] == [5, 4]


def test_fewer_than_are_kept_and_none() -> None:
    assert best_steps({7: 0.1}, "mask_iou", 3) == [7]
    assert best_steps({7: 0.1}, "mask_iou", 0) == []
    assert best_steps({}, "mask_iou", 3) == []


@given(st.dictionaries(st.integers(1, 10**9), st.floats(), max_size=8), st.integers(0, 10))
def test_one_more_is_kept_by_keeping_one_more(found: dict[int, float], count: int) -> None:
    """The best ones don't depend on how many are asked for, nor on the order of the evaluations."""
    assert best_steps(found, "depth_mae", count + 1)[:count] == best_steps(found, "depth_mae", count)
    assert best_steps(dict(reversed(found.items())), "depth_mae", count) == best_steps(found, "depth_mae", count)
