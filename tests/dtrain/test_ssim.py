"""Structural similarity: against torchmetrics pixel by pixel, its properties, and where numbers run short."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from dtrain.ssim import ssim_map


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("shape", [(2, 1, 11, 11), (3, 2, 20, 33), (1, 3, 64, 40)])
def test_each_pixel_is_that_of_torchmetrics(shape: tuple[int, ...], data_range: float) -> None:
    torch.manual_seed(0)
    a = torch.rand(shape, dtype=torch.float64) * data_range
    b = a / 2 + torch.rand_like(a) * data_range
    _, theirs = structural_similarity_index_measure(a, b, data_range=data_range, return_full_image=True)
    ours = ssim_map(a, b, data_range=data_range)
    assert ours.shape == (*shape[:2], shape[2] - 10, shape[3] - 10)
    assert torch.allclose(ours, theirs[..., 5:-5, 5:-5], atol=1e-12)  # theirs pads with mirrored pixels
    assert ours.std() > 0 or ours.numel() == 2


def test_bounds_and_symmetry() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 2, 1, 24, 24, dtype=torch.float64)
    assert torch.allclose(ssim_map(a, a), torch.ones(2, 1, 14, 14, dtype=torch.float64))
    assert torch.allclose(ssim_map(a, b), ssim_map(b, a))
    negative = ssim_map(a, 1 - a)
    assert -1 <= negative.min() < negative.max() < 0


def test_a_data_range_that_is_too_wide_hides_every_difference() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 1, 32, 32)
    assert ssim_map(a, b).mean() < 0.2
    assert ssim_map(a, b, data_range=255.0).mean() > 0.9


@pytest.mark.parametrize("level", [0.0, 0.3, 1e4])
def test_flat_images_are_compared_by_their_level(level: float) -> None:
    flat = torch.full((1, 1, 16, 16), level)
    c1 = 1e-4
    expected = c1 / (level**2 + c1)
    assert ssim_map(flat, torch.zeros_like(flat)).flatten().tolist() == pytest.approx([expected] * 36, rel=1e-4)
    assert ssim_map(flat, flat).flatten().tolist() == pytest.approx([1.0] * 36, abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_float32_is_enough_also_far_from_zero(offset: float) -> None:
    torch.manual_seed(0)
    a = torch.rand(1, 1, 32, 32, dtype=torch.float64) + offset
    b = a + torch.randn_like(a) / 10
    found = ssim_map(a.float(), b.float())
    assert torch.allclose(found.double(), ssim_map(a.float().double(), b.float().double()), atol=2e-5)


@pytest.mark.parametrize("height", [1e3, 1e4])
def test_a_step_far_out_of_the_data_range_leaves_values_in_bounds(height: float) -> None:
    torch.manual_seed(0)
    step = torch.zeros(1, 1, 40, 40)
    step[..., 20:] = height
    for other in (torch.rand_like(step), torch.zeros_like(step), step + torch.rand_like(step)):
        a = step.clone().requires_grad_()
        found = ssim_map(a, other)
        assert found.abs().max() <= 1 + 1e-6
        found.sum().backward()  # type: ignore[no-untyped-call]
        assert a.grad is not None
        assert torch.isfinite(a.grad).all()


def test_gradients_are_those_of_the_value() -> None:
    torch.manual_seed(0)
    a = torch.rand(1, 1, 11, 12, dtype=torch.float64, requires_grad=True)
    b = torch.rand(1, 1, 11, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ssim_map, (a, b), atol=1e-7)


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = ssim_map(a, b)
    assert torch.equal(found, ssim_map(a, b))


def test_images_that_are_too_small_or_differ_in_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(16, 10\).*11 pixels"):
        ssim_map(torch.rand(1, 1, 16, 10), torch.rand(1, 1, 16, 10))
    with pytest.raises(ValueError, match="same shape"):
        ssim_map(torch.rand(1, 1, 16, 16), torch.rand(2, 1, 16, 16))
