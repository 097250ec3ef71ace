"""Planes brought to other sizes: larger ones without a loss of determinism, smaller ones by averaging."""

import torch
import torch.nn.functional as F

from dtrain.resize import resize


def test_larger_is_bilinear_with_and_without_antialiasing() -> None:
    planes = torch.rand(2, 3, 8, 12)
    assert torch.allclose(resize(planes, (20, 24)), F.interpolate(planes, (20, 24), mode="bilinear", antialias=True))


def test_smaller_averages_over_what_is_left_out() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 1, 32, 32)
    smaller = resize(stripes, (8, 8))
    assert torch.allclose(smaller[..., 1:-1], torch.full((1, 1, 8, 6), 0.5), atol=0.02)


def test_the_same_size_is_the_same_tensor() -> None:
    planes = torch.rand(1, 1, 4, 4)
    assert resize(planes, (4, 4)) is planes
