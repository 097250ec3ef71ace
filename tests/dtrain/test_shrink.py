"""The network that only shrinks: what it is made of, the sizes it takes, and that all of it learns."""

import pytest
import torch
import torch.nn.functional as F

from dtrain.config import LossConfig, ModelConfig
from dtrain.losses import Criterion
from dtrain.model import DepthMaskNet
from dtrain.networks import make_network
from dtrain.shrink import ShrinkNet


def test_the_parameters_are_those_of_the_encoder_and_a_light_head() -> None:
    encoder = {name: tensor.shape for name, tensor in DepthMaskNet().state_dict().items() if "encoder" in name}
    shrink = {name: tensor.shape for name, tensor in ShrinkNet().state_dict().items()}
    assert {name: shape for name, shape in shrink.items() if "encoder" in name} == encoder

    head = (512 * 32 + 32) + 2 * 32 + (32 + 1) + (32 * 9 + 1)
    count = sum(parameter.numel() for parameter in ShrinkNet().parameters())
    assert head == 16_802
    assert count == 23_068_706
    assert f"{count:,}" in str(ShrinkNet.__doc__)
    assert f"{head:,}" in str(ShrinkNet.__doc__)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 64), (256, 256)])
def test_predictions_have_an_eighth_of_the_size(height: int, width: int) -> None:
    prediction = ShrinkNet(width=1 / 16)(torch.rand(2, 6, height, width))
    assert prediction.depth.shape == prediction.mask_logits.shape == (2, 1, height // 8, width // 8)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (7, 7)])
def test_a_side_that_8_does_not_divide_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"\({height}, {width}\).*divisible by 8"):
        ShrinkNet(width=1 / 16)(torch.rand(2, 6, height, width))


def test_a_width_that_leaves_no_channel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width 0\.01"):
        ShrinkNet(width=0.01)


def test_the_configuration_names_it() -> None:
    assert isinstance(make_network(ModelConfig(name="shrink", width=1 / 16)), ShrinkNet)


def test_every_layer_gets_a_gradient_and_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    network, criterion = ShrinkNet(width=1 / 16), Criterion(LossConfig())
    images = torch.rand(4, 6, 32, 32)
    reduced = F.interpolate(images, scale_factor=1 / 8, mode="area")
    true = {"depth": reduced[:, :1], "mask": (reduced[:, 1:2] > 0.5).float(), "image": reduced[:, 3:]}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for step in range(6):
        loss = criterion(network(images), **true)[0]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:
            dead = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
            assert not dead
            assert all(p.grad is not None and p.grad.any() for n, p in network.named_parameters() if "weight" in n)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
