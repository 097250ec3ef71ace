"""The losses against the same formulas written in NumPy, and what a training needs of their gradients."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from dtrain.config import LossConfig
from dtrain.loss_names import DEPTH_LOSSES, MASK_LOSSES, SMALLEST_SIDE, figure_name
from dtrain.losses import Criterion, dice_loss, gradient_loss, safe_log, silog_loss, smoothness_loss
from dtrain.model import Prediction

Array = NDArray[np.float64]
EVERY_LOSS = LossConfig(depth=dict.fromkeys(DEPTH_LOSSES, 1.0), mask=dict.fromkeys(MASK_LOSSES, 1.0))
TERMS = [("depth", name) for name in DEPTH_LOSSES] + [("mask", name) for name in MASK_LOSSES]


def only(task: str, name: str) -> LossConfig:
    """The loss with one term for `task`, and the default for the other."""
    return LossConfig(depth={name: 1.0}) if task == "depth" else LossConfig(mask={name: 1.0})


def huber(error: Array) -> Array:
    return np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)


def slopes(x: Array) -> tuple[Array, Array]:
    return np.diff(x, axis=-1), np.diff(x, axis=-2)


def gradient(a: Array, b: Array) -> float:
    return float(sum(np.abs(in_a - in_b).mean() for in_a, in_b in zip(slopes(a), slopes(b), strict=True)))


def one_minus_ssim(a: Array, b: Array) -> float:
    axis = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / np.outer(axis, axis).sum()
    at_a, at_b = (sliding_window_view(x, (11, 11), axis=(-2, -1)) for x in (a, b))

    def weighted(values: Array) -> Array:
        return np.asarray((values * window).sum((-2, -1)))

    mean_a, mean_b = weighted(at_a), weighted(at_b)
    from_a, from_b = at_a - mean_a[..., None, None], at_b - mean_b[..., None, None]
    ssim = (2 * mean_a * mean_b + 1e-4) * (2 * weighted(from_a * from_b) + 9e-4)
    ssim /= (mean_a**2 + mean_b**2 + 1e-4) * (weighted(from_a**2) + weighted(from_b**2) + 9e-4)
    return float(1 - ssim.mean())


def silog(predicted: Array, true: Array) -> float:
    def log(x: float) -> float:
        epsilon = 4 / 255
        return float(np.log(x) if x >= epsilon else 2 * np.log(epsilon) - np.log(2 * epsilon - x))

    samples = []
    for one_predicted, one_true in zip(predicted, true, strict=True):
        d = [log(p) - log(t) for p, t in zip(one_predicted.ravel(), one_true.ravel(), strict=True)]
        samples.append(np.sum(np.square(d)) / len(d) - 0.5 * np.sum(d) ** 2 / len(d) ** 2)
    return float(np.mean(samples))


def smoothness(predicted: Array, image: Array) -> float:
    pairs = zip(slopes(predicted), slopes(image), strict=True)
    return float(sum((np.abs(d) * np.exp(-np.abs(i).mean(1, keepdims=True))).mean() for d, i in pairs))


def dice(probability: Array, mask: Array) -> float:
    pairs = zip(probability, mask, strict=True)
    return float(np.mean([1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1) for p, t in pairs]))


EITHER: dict[str, Callable[[Array, Array], float]] = {
    "l1": lambda a, b: float(np.abs(a - b).mean()),
    "mse": lambda a, b: float(((a - b) ** 2).mean()),
    "smooth_l1": lambda a, b: float(huber(a - b).mean()),
    "ssim": one_minus_ssim,
    "gradient": gradient,
    "silog": silog,
    "dice": dice,
}


def expected(task: str, name: str, depth: Array, logits: Array, true: dict[str, Array]) -> float:
    if name == "smoothness":
        return smoothness(depth, true["image"])
    if task == "depth":
        return EITHER[name](depth, true["depth"])
    p, t = 1 / (1 + np.exp(-logits)), true["mask"]
    return float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()) if name == "bce" else EITHER[name](p, t)


def drawn(seed: int = 0, samples: int = 3, height: int = 15, width: int = 20) -> tuple[Array, Array, dict[str, Array]]:
    """Predicted depth, beyond [0, 1] here and there, and logits; and what is true, with depths of 0 in it."""
    random = np.random.default_rng(seed)
    shape = (samples, 1, height, width)
    depth, mask = random.random(shape), (random.random(shape) > 0.5).astype(float)
    depth[:, :, :2] = 0
    true = {"depth": depth, "mask": mask, "image": random.random((samples, 3, height, width))}
    return depth + random.normal(0, 0.4, shape), 3 * random.normal(size=shape), true


def tensors(arrays: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()}


def prediction_of(depth: Any, logits: Any, dtype: torch.dtype = torch.float32) -> Prediction:
    return Prediction(*(torch.as_tensor(x, dtype=dtype) for x in (depth, logits)))


@pytest.mark.parametrize(("task", "name"), TERMS)
def test_every_loss_is_its_formula(task: str, name: str) -> None:
    depth, logits, true = drawn()
    assert depth.min() < 0 < depth.max() - 1
    criterion = Criterion(only(task, name))
    figures = criterion(prediction_of(depth, logits), **tensors(true))
    found = dict(zip(criterion.names, figures.tolist(), strict=True))
    assert found[figure_name(task, name)] == pytest.approx(expected(task, name, depth, logits, true), rel=2e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5, 70.0])
def test_the_loss_is_scale_times_the_weighted_sum(scale: float) -> None:
    config = LossConfig(scale=scale, depth={"ssim": 0.25, "mse": 2.0}, mask={"dice": 3.0, "bce": 0.5})
    depth, logits, true = drawn(1)

    criterion = Criterion(config)
    loss, *terms = criterion(prediction_of(depth, logits), **tensors(true)).tolist()

    assert criterion.names == ("loss", "depth_ssim_loss", "depth_mse", "mask_dice_loss", "mask_bce")
    named = [("depth", "ssim"), ("depth", "mse"), ("mask", "dice"), ("mask", "bce")]
    assert terms == pytest.approx([expected(*name, depth, logits, true) for name in named], rel=2e-5)
    assert loss == pytest.approx(scale * (0.25 * terms[0] + 2 * terms[1] + 3 * terms[2] + 0.5 * terms[3]), rel=1e-5)


def test_right_predictions_cost_nothing() -> None:
    true = tensors(drawn()[2]) | {"image": torch.rand(3, 3, 15, 20)}
    sure = Prediction(true["depth"], (true["mask"] - 0.5) * 200)
    criterion = Criterion(EVERY_LOSS)
    figures = dict(zip(criterion.names, criterion(sure, **true).tolist(), strict=True))
    assert {name for name, value in figures.items() if value > 1e-6} == {"loss", "depth_smoothness"}

    flat = torch.full_like(true["depth"], 0.3)
    assert Criterion(only("depth", "smoothness"))(sure._replace(depth=flat), **true)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_lose_nothing_but_the_prediction_s_digits(dtype: torch.dtype) -> None:
    depth, logits, true = drawn()
    rounded = prediction_of(depth, logits, dtype)
    criterion = Criterion(EVERY_LOSS)
    with torch.autocast("cpu", torch.bfloat16):
        figures = criterion(rounded, **tensors(true))
    assert figures.dtype == torch.float32
    assert figures.tolist() == criterion(prediction_of(*rounded), **tensors(true)).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("depth", "logits"),
    [
        (torch.zeros(()), torch.tensor(1e4)),
        (torch.tensor(-3.0), torch.tensor(-1e4)),
        (torch.tensor(100.0), torch.tensor(0.0)),
        (torch.linspace(-2, 2, 256).reshape(16, 16), torch.linspace(-1e4, 1e4, 256).reshape(16, 16)),
    ],
)
@pytest.mark.parametrize("true", [0.0, 1.0, "random"])
def test_values_and_gradients_are_finite_in_extreme_cases(
    dtype: torch.dtype, depth: Tensor, logits: Tensor, true: float | str
) -> None:
    torch.manual_seed(0)
    shape = (2, 1, 16, 16)
    target = torch.rand(shape).round() if true == "random" else torch.full(shape, float(true))
    image = torch.rand(2, 3, 16, 16) if true == "random" else torch.full((2, 3, 16, 16), float(true))
    inputs = [x.to(dtype).expand(shape).clone().requires_grad_() for x in (depth, logits)]
    prediction = Prediction(*inputs)
    figures = Criterion(EVERY_LOSS)(prediction, depth=target, mask=target, image=image)
    assert torch.isfinite(figures).all()
    figures[0].backward()  # type: ignore[no-untyped-call]
    for x, predicted in zip(inputs, (prediction.depth, prediction.mask), strict=True):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert x.grad.any() or torch.equal(predicted.float(), target)


def test_bce_tells_a_logit_that_is_wrong_by_far_which_way_to_go() -> None:
    logits = torch.tensor([1e4, -1e4], dtype=torch.float16).reshape(1, 1, 1, 2).requires_grad_()
    wrong = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    criterion = Criterion(LossConfig())
    figures = criterion(Prediction(wrong, logits), depth=wrong, mask=wrong, image=torch.rand(1, 3, 1, 2))
    figures[0].backward()  # type: ignore[no-untyped-call]
    assert figures[-1].item() == pytest.approx(1e4, rel=2e-3)
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [0.5, -0.5]


def test_micro_batches_weighted_by_their_samples_are_the_batch() -> None:
    depth, logits, true = drawn(samples=7)
    depth[2], true["mask"][3] = true["depth"][2], 0  # samples that differ from the others in what they cost
    criterion = Criterion(EVERY_LOSS)
    targets = tensors(true)

    def figures_and_gradient(parts: list[slice]) -> tuple[Tensor, Tensor]:
        whole = [torch.as_tensor(x, dtype=torch.float32).requires_grad_() for x in (depth, logits)]
        total = torch.zeros(len(criterion.names))
        for rows in parts:
            part = {name: target[rows] for name, target in targets.items()}
            total = total + criterion(Prediction(*(x[rows] for x in whole)), **part) * len(part["depth"]) / 7
        total[0].backward()  # type: ignore[no-untyped-call]
        return total.detach(), torch.stack([x.grad for x in whole if x.grad is not None])

    batch, gradient_of_batch = figures_and_gradient([slice(0, 7)])
    cut, gradient_of_cut = figures_and_gradient([slice(0, 1), slice(1, 5), slice(5, 7)])
    assert cut.tolist() == pytest.approx(batch.tolist(), rel=1e-5)
    assert torch.allclose(gradient_of_cut, gradient_of_batch, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("task", "name"), TERMS)
def test_the_gradient_points_downhill(task: str, name: str) -> None:
    depth, logits, true = drawn(5)
    inputs = [torch.as_tensor(x, dtype=torch.float32).requires_grad_() for x in (depth, logits)]
    criterion, targets = Criterion(only(task, name)), tensors(true)
    place = criterion.names.index(figure_name(task, name))
    history = []
    for _ in range(8):
        figure = criterion(Prediction(*inputs), **targets)[place]
        history.append(figure.item())
        moved = inputs[task == "mask"]
        (slope,) = torch.autograd.grad(figure, moved)
        with torch.no_grad():
            moved -= 0.2 * figure * slope / slope.square().sum()  # a fifth of the way to 0, were it straight
    assert all(later < earlier for earlier, later in pairwise(history)), history
    assert history[-1] < 0.8 * history[0]


@pytest.mark.parametrize("function", [gradient_loss, silog_loss, dice_loss])
def test_gradients_are_those_of_the_value(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    predicted, true = torch.rand(2, 1, 5, 6, dtype=torch.float64), torch.rand(2, 1, 5, 6, dtype=torch.float64)
    if function is silog_loss:
        predicted, true = predicted - 0.3, (true - 0.3).clamp(min=0)
    assert torch.autograd.gradcheck(lambda x: function(x, true), predicted.requires_grad_(), atol=1e-7)


def test_the_gradient_of_smoothness_is_that_of_its_value() -> None:
    torch.manual_seed(0)
    depth = torch.rand(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    image = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: smoothness_loss(x, image), depth)


def test_an_edge_of_depth_costs_less_where_the_image_has_one() -> None:
    depth, image = torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8)
    depth[..., 4:] = 1
    image[..., 4:] = 1
    elsewhere = image.roll(2, dims=-1)
    assert smoothness_loss(depth, image).item() == pytest.approx(np.exp(-1) / 7)
    assert smoothness_loss(depth, elsewhere).item() == pytest.approx(1 / 7)
    assert smoothness_loss(depth.mT, image.mT).item() == pytest.approx(np.exp(-1) / 7)


def test_silog_forgives_half_of_a_common_factor() -> None:
    true = torch.rand(4, 1, 8, 8) / 2 + 0.1
    assert silog_loss(true * 1.5, true).item() == pytest.approx(0.5 * np.log(1.5) ** 2, rel=1e-5)


def test_the_safe_logarithm_is_one_above_epsilon_and_rises_smoothly_through_it_and_through_zero() -> None:
    x = torch.linspace(-1, 1, 20_001, dtype=torch.float64, requires_grad=True)
    y = safe_log(x)
    above = x >= 4 / 255
    assert torch.equal(y[above], x[above].log())
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all()
    assert slope.max() <= 255 / 4
    assert slope.diff().abs().max() < 0.5  # no kink
    assert (y.diff() > 0).all()


def test_dice_of_an_empty_mask() -> None:
    empty = torch.zeros(1, 1, 4, 4)
    assert dice_loss(empty, empty).item() == 0
    assert dice_loss(empty + 0.5, empty).item() == pytest.approx(1 - 1 / 9)


@pytest.mark.parametrize(("task", "name"), [term for term in TERMS if term[1] in SMALLEST_SIDE])
def test_a_prediction_that_is_too_small_is_refused(task: str, name: str) -> None:
    def call(side: int) -> Tensor:
        maps = {"depth": torch.rand(1, 1, 32, side), "mask": torch.rand(1, 1, 32, side)}
        return Criterion(only(task, name))(Prediction(*maps.values()), **maps, image=torch.rand(1, 3, 32, side))

    assert torch.isfinite(call(SMALLEST_SIDE[name])).all()
    with pytest.raises(ValueError, match=rf"32, {SMALLEST_SIDE[name] - 1}\).*{name} needs.* {SMALLEST_SIDE[name]} "):
        call(SMALLEST_SIDE[name] - 1)


def test_the_page_of_losses_has_every_one_and_its_configurations_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs/losses.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (both|depth|mask) \|", page, flags=re.MULTILINE)
    assert {name for name, task in rows if task != "mask"} == set(DEPTH_LOSSES)
    assert {name for name, task in rows if task != "depth"} == set(MASK_LOSSES)

    shown = re.findall(r"`(?:loss: )?(\{(?:scale|depth): .+?\})`", page)
    assert len(shown) == 6
    for line in shown:
        assert len(Criterion(LossConfig.model_validate(yaml.safe_load(line))).names) >= 3
