"""The table of the network: its figures by hand, from a real forward pass, and as people see them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dtrain.cli import main
from dtrain.model import DepthMaskNet
from dtrain.shrink import ShrinkNet
from dtrain.summary import Summary, summarize

SIZE = 16
TINY = 1 / 32
"""Widths 1, 2, 4, 8 and 16."""
# (name, channels in, channels out, side of the kernel, side of the output)
ENCODER = [
    *(("encoder1a", 6, 2, 3, 16), ("encoder1b", 2, 2, 3, 16)),
    *(("encoder2a", 4, 4, 3, 8), ("encoder2b", 8, 4, 3, 8), ("encoder2c", 12, 4, 3, 8)),
    *(("encoder3a", 12, 8, 3, 4), ("encoder3b", 20, 8, 3, 4), ("encoder3c", 28, 8, 3, 4)),
    *(("encoder4a", 24, 16, 3, 2), ("encoder4b", 40, 16, 3, 2), ("encoder4c", 56, 16, 3, 2)),
]
DENSE = [
    *ENCODER,
    *(("reduce3", 16, 8, 1, 4), ("decoder3", 8, 8, 3, 4)),
    *(("reduce2", 8, 4, 1, 8), ("decoder2", 4, 4, 3, 8)),
    *(("reduce1", 4, 2, 1, 16), ("decoder1", 2, 2, 3, 16), ("decoder0", 2, 1, 3, 16)),
    *(("depth_head", 1, 1, 1, 16), ("mask_head", 1, 1, 3, 16)),
]
SHRINK = [*ENCODER, ("reduce", 16, 1, 1, 2), ("depth_head", 1, 1, 1, 2), ("mask_head", 1, 1, 3, 2)]
NETWORKS = [pytest.param(DepthMaskNet, DENSE, id="dense"), pytest.param(ShrinkNet, SHRINK, id="shrink")]


def summary_of(network: type[nn.Module], width: float = TINY, size: int = SIZE) -> Summary:
    with torch.device("meta"):
        return summarize(network(width), size)


@pytest.mark.parametrize(("network", "convolutions"), NETWORKS)
def test_shapes_parameters_and_flops_are_those_computed_by_hand(
    network: type[nn.Module], convolutions: list[tuple[str, int, int, int, int]]
) -> None:
    summary = summary_of(network)
    blocks = {layer.name: layer for layer in summary.layers if layer.name}
    flops = {name: 2 * k**2 * i * o * side**2 for name, i, o, k, side in convolutions}
    norms = {name: 0 if "head" in name else 2 * o for name, _, o, _, _ in convolutions}

    assert {name: layer.shape for name, layer in blocks.items()} == {n: (o, s, s) for n, _, o, _, s in convolutions}
    assert {name: layer.flops for name, layer in blocks.items()} == flops
    assert {name: layer.parameters for name, layer in blocks.items()} == {
        name: k**2 * i * o + o + norms[name] for name, i, o, k, _ in convolutions
    }
    assert summary.parameters == sum(parameter.numel() for parameter in network(TINY).parameters())
    assert summary.forward_flops == sum(flops.values())
    # the backward pass is a convolution for the weights and one for the input, but for the images
    assert summary.training_flops == 3 * sum(flops.values()) - flops["encoder1a"]


def test_memory_is_that_computed_by_hand() -> None:
    layers = summary_of(DepthMaskNet).layers
    pixels, quarter = SIZE**2, (SIZE // 2) ** 2
    expected = [
        ("input", 6 * pixels * 4),
        ("Conv2d 3×3, ReLU, BatchNorm2d", (2 + 2) * pixels * 4),  # what enters BatchNorm, and the next convolution
        ("Conv2d 3×3, ReLU, BatchNorm2d", 2 * pixels * 4),  # the output is copied by the concatenation
        ("concatenate", 4 * pixels * 4),
        ("max pool", 4 * quarter * (4 + 8)),  # with the place of each maximum
    ]
    assert [(layer.operation, layer.kept) for layer in layers[:5]] == expected
    assert [layer.kept for layer in layers if layer.name == "decoder1"] == [(2 + 2) * pixels * 4]


def saved_by_autograd(network: nn.Module, images: Tensor) -> int:
    """Bytes of feature maps in the graph behind a prediction, from the graph itself."""
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    waiting, seen, found = [output.grad_fn for output in network(images)], set(), {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            if isinstance(value, Tensor) and value.dim() == 4 and value.data_ptr() not in parameters:
                found[value.data_ptr()] = value.untyped_storage().nbytes()
        waiting += [following for following, _ in node.next_functions]
    return sum(found.values())


@pytest.mark.parametrize("network", [DepthMaskNet, ShrinkNet])
def test_memory_is_that_of_a_real_forward_pass(network: type[nn.Module]) -> None:
    assert summary_of(network, 1 / 16, 24).kept == saved_by_autograd(network(1 / 16), torch.rand(1, 6, 24, 24))


def test_costs_follow_the_number_of_pixels_down_to_the_smallest_size() -> None:
    small, large = summary_of(DepthMaskNet, size=8), summary_of(DepthMaskNet, size=64)
    assert large.forward_flops == 64 * small.forward_flops
    assert large.training_flops == 64 * small.training_flops
    assert large.kept == 64 * small.kept


@pytest.mark.parametrize("network", [DepthMaskNet, ShrinkNet])
def test_receptive_fields_are_those_through_which_a_pixel_is_reached(network: type[nn.Module]) -> None:
    """A column of the input that is not a number spoils just the columns that depend on it."""
    columns, middle = 152, slice(72, 80)
    images = torch.rand(1, 6, 8, columns, dtype=torch.float64).repeat(columns, 1, 1, 1)
    images[range(columns), :, :, range(columns)] = torch.nan
    module, found = network(TINY).double().eval(), {}  # in float32, convolutions by FFT spoil all

    def look(name: str, output: Tensor) -> None:
        distance = columns // output.shape[-1]
        spoilt = output.isnan().any(1).any(1)[:, middle.start // distance : middle.stop // distance]
        assert not spoilt[[0, -1]].any()
        found[name] = float(spoilt.sum(0).float().mean())

    for name, block in module.named_children():
        block.register_forward_hook(lambda _, __, output, name=name: look(name, output))
    with torch.no_grad():
        module(images)

    fields = {layer.name: layer.field for layer in summary_of(network).layers if layer.name}
    assert fields == found
    assert fields["encoder1b"] == 5
    assert fields["encoder4c"] == 96


CONFIG = """
run: somewhere
data: {manifest: not/there}
model: {name: dense, width: 0.0625}
stages:
  - {size: 16, batch: 4}
  - {size: 32, batch: 2}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def table_after(title: str, text: str) -> list[list[str]]:
    """The words of each line, without the header."""
    _, table = text.split(f"{title}:\n")
    return [line.split() for line in table.partition("\n\n")[0].splitlines()[1:]]


def number(text: str) -> float:
    return 0 if text == "-" else float(text.replace(",", ""))


def test_the_columns_add_up_to_the_totals(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(config)]) == 0
    text = capsys.readouterr().out
    *layers, total = [[number(word) for word in row[-4:]] for row in table_after("stage 1, 32×32 pixels", text)]
    parameters, _, flops, kept = (sum(column) for column in zip(*layers, strict=True))

    count = sum(parameter.numel() for parameter in DepthMaskNet(1 / 16).parameters())
    assert f"dense, width 0.0625: {count:,} parameters" in text
    assert parameters == total[0] == count
    assert flops == pytest.approx(total[2], abs=0.005 * len(layers))
    assert kept == pytest.approx(total[3], abs=0.05 * len(layers))

    stages = table_after("a tuple in each stage", text)
    assert [row[:2] for row in stages] == [["0", "16×16"], ["1", "32×32"]]
    forward, training, memory = (number(word) for word in stages[1][2:])
    assert forward == pytest.approx(total[2] / 1e3, abs=0.001)
    assert training == pytest.approx(3 * forward, rel=0.2)
    assert memory == pytest.approx(total[3] / 1024, abs=0.005)


def test_a_stage_and_keys_of_the_configuration_are_options(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(config), "--stage", "0", "--model.name", "shrink", "--stages.0.size=24"]) == 0
    text = capsys.readouterr().out
    assert "shrink, width 0.0625" in text
    assert table_after("stage 0, 24×24 pixels", text)[-2][-9:-4] == ["1", "×", "3", "×", "3"]


def test_a_stage_that_does_not_exist_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(config), "--stage", "2"]) == 1
    assert "--stage 2: there is no such stage; expected 0 to 1" in capsys.readouterr().err


def test_the_network_of_the_write_up_from_the_command_line() -> None:
    command = [sys.executable, "-m", "dtrain", "summary", "configs/curriculum.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "24,019,618 parameters" in done.stdout
    assert [row[1] for row in table_after("a tuple in each stage", done.stdout)][-1] == "256×256"
