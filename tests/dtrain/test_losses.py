"""The loss against the same formula written in NumPy."""

import numpy as np
import pytest
import torch

from dtrain.losses import depth_mask_loss
from dtrain.model import Prediction


@pytest.mark.parametrize("scale", [1.0, 0.5, 20.0])
def test_loss_is_scale_times_mse_plus_bce(scale: float) -> None:
    random = np.random.default_rng(0)
    shape = (3, 1, 5, 7)
    predicted, logits = random.normal(size=shape), 4 * random.normal(size=shape)
    depth, mask = random.random(shape), random.random(shape)
    mse = ((predicted - depth) ** 2).mean()
    probability = 1 / (1 + np.exp(-logits))
    bce = -(mask * np.log(probability) + (1 - mask) * np.log(1 - probability)).mean()

    losses = depth_mask_loss(
        Prediction(torch.from_numpy(predicted).float(), torch.from_numpy(logits).float()),
        torch.from_numpy(depth).float(),
        torch.from_numpy(mask).float(),
        scale=scale,
    )

    assert float(losses.depth_mse) == pytest.approx(mse, rel=1e-5)
    assert float(losses.mask_bce) == pytest.approx(bce, rel=1e-5)
    assert float(losses.total) == pytest.approx(scale * (mse + bce), rel=1e-5)


def test_right_predictions_cost_nothing() -> None:
    depth = torch.rand(2, 1, 4, 4)
    mask = (torch.rand(2, 1, 4, 4) > 0.5).float()
    losses = depth_mask_loss(Prediction(depth, (mask - 0.5) * 200), depth, mask, scale=3.0)
    assert [float(loss) for loss in losses] == pytest.approx([0, 0, 0], abs=1e-12)


def test_the_loss_is_float32_within_autocast_and_for_half_precision() -> None:
    depth, mask = torch.full((1, 1, 2, 2), 0.1), torch.ones(1, 1, 2, 2)
    half = Prediction(torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16), torch.zeros(1, 1, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        losses = depth_mask_loss(half, depth, mask, scale=1.0)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert float(losses.depth_mse) == pytest.approx(299.9**2, rel=1e-6)  # no float16 holds that
    assert float(losses.mask_bce) == pytest.approx(np.log(2), rel=1e-6)
