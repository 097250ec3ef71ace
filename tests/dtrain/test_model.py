"""The network: every layer of its table, its wiring, the sizes it takes, and numbers that stay finite."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtrain.config import LossConfig
from dtrain.losses import Criterion
from dtrain.model import DepthMaskNet, Prediction

# (channels in, channels out, side of the kernel) of every block, in the order of the table
ENCODER = [
    *((6, 64, 3), (64, 64, 3)),
    *((128, 128, 3), (256, 128, 3), (384, 128, 3)),
    *((384, 256, 3), (640, 256, 3), (896, 256, 3)),
    *((768, 512, 3), (1280, 512, 3), (1792, 512, 3)),
]
DECODER = [
    *((512, 256, 1), (256, 256, 3)),
    *((256, 128, 1), (128, 128, 3)),
    *((128, 64, 1), (64, 64, 3)),
    (64, 32, 3),
]
HEADS = [(32, 1, 1), (32, 1, 3)]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """What has parameters of its own, in the order of registration."""
    return [module for module in model.modules() if list(module.parameters(recurse=False))]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_parameters_of_every_layer() -> None:
    expected = []
    for channels_in, channels_out, kernel in ENCODER + DECODER:
        expected += [channels_in * channels_out * kernel**2 + channels_out, 2 * channels_out]
    expected += [channels_in * channels_out * kernel**2 + channels_out for channels_in, channels_out, kernel in HEADS]
    assert len(ENCODER + DECODER) == 18

    model = DepthMaskNet()

    assert [count(layer) for layer in layers_of(model)] == expected
    assert count(model) == sum(expected) == 24_019_618


def reference(layers: list[nn.Module], images: Tensor) -> tuple[Tensor, Tensor]:
    """The network in words of the issue: layers are used up in order."""
    remaining = iter(layers)

    def encode(x: Tensor) -> Tensor:
        convolution, norm = next(remaining), next(remaining)
        return norm(F.relu(convolution(x)))  # type: ignore[no-any-return]

    def decode(x: Tensor, skip: Tensor | None = None) -> Tensor:
        convolution, norm = next(remaining), next(remaining)
        x = F.relu(norm(convolution(x)))
        return x if skip is None else x + skip

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    first = encode(images)
    skip1 = encode(first)
    x = F.max_pool2d(torch.cat([first, skip1], 1), 2)
    skips = [skip1]
    for _ in range(2):
        a = encode(x)
        b = encode(torch.cat([x, a], 1))
        c = encode(torch.cat([x, a, b], 1))
        skips.append(c)
        x = F.max_pool2d(torch.cat([a, b, c], 1), 2)
    a = encode(x)
    b = encode(torch.cat([x, a], 1))
    x = encode(torch.cat([x, a, b], 1))
    for skip in reversed(skips):
        x = decode(decode(up(x), skip))
    x = decode(x)
    depth_head, mask_head = remaining
    return depth_head(x), mask_head(x)


def test_the_wiring_is_that_of_the_table() -> None:
    torch.manual_seed(1)
    model = DepthMaskNet(width=1 / 16)
    images = torch.rand(2, 6, 16, 24)
    model(images)  # BatchNorm statistics that are not those of a new layer
    model.eval()
    with torch.no_grad():
        prediction = model(images)
        depth, mask = reference(layers_of(model), images)
    assert torch.allclose(prediction.depth, depth, atol=1e-6)
    assert torch.allclose(prediction.mask_logits, mask, atol=1e-6)
    assert torch.allclose(prediction.mask, 1 / (1 + torch.exp(-mask)), atol=1e-6)
    assert depth.std() > 0


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (40, 64)])
def test_outputs_have_the_size_of_the_input(height: int, width: int) -> None:
    prediction = DepthMaskNet(width=1 / 16)(torch.rand(2, 6, height, width))
    assert prediction.depth.shape == prediction.mask_logits.shape == prediction.mask.shape == (2, 1, height, width)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (7, 7)])
def test_a_side_that_8_does_not_divide_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"\({height}, {width}\).*divisible by 8"):
        DepthMaskNet(width=1 / 16)(torch.rand(2, 6, height, width))


def test_the_width_scales_all_inner_channels() -> None:
    model = DepthMaskNet(width=0.25)
    convolutions = [layer for layer in layers_of(model) if isinstance(layer, nn.Conv2d)]
    found = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in convolutions]
    inner = [(i if i == 6 else i // 4, o // 4, k) for i, o, k in ENCODER + DECODER]
    assert found == inner + [(i // 4, o, k) for i, o, k in HEADS]


@pytest.mark.parametrize("width", [0, 0.01, -1])
def test_a_width_that_leaves_no_channel_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=f"width {width}"):
        DepthMaskNet(width=width)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_huge_logits_in_half_precision_stay_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([1e4, -1e4, 0.0, 40.0], dtype=dtype).reshape(1, 1, 2, 2).requires_grad_()
    prediction = Prediction(torch.zeros(1, 1, 2, 2, dtype=dtype), logits)

    probabilities = prediction.mask
    assert probabilities.dtype == torch.float32
    assert probabilities.flatten()[:3].tolist() == [1.0, 0.0, 0.5]
    assert ((probabilities >= 0) & (probabilities <= 1)).all()

    wrong = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    loss, _, bce = Criterion(LossConfig())(prediction, depth=torch.zeros_like(wrong), mask=wrong, image=wrong)
    loss.backward()
    assert bce.dtype == torch.float32
    assert float(bce.detach()) == pytest.approx((1e4 + 1e4 + 0.6931 + 40) / 4, rel=2e-3)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


def test_gradients_are_finite_in_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    model = DepthMaskNet(width=1 / 16)
    images, depth, mask = torch.rand(2, 6, 16, 16), torch.rand(2, 1, 16, 16), (torch.rand(2, 1, 16, 16) > 0.5).float()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(images)
        loss = Criterion(LossConfig(scale=10.0))(prediction, depth=depth, mask=mask, image=images[:, 3:])[0]
    assert prediction.depth.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
