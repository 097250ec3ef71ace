"""Run folders with networks that were never trained, and pictures to show to them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dtrain.checkpoint import Checkpoint, save_checkpoint
from dtrain.config import Config
from dtrain.networks import make_network

from .conftest import smooth_pixels


def make_run(config: Config) -> Path:
    """The folder of a run without checkpoints."""
    config.run.mkdir(parents=True)
    (config.run / "config.yaml").write_text(config.to_yaml())
    return config.run


def trained_state(config: Config) -> dict[str, Any]:
    """Of the end of the run."""
    return {"position": {"stage": len(config.stages), "epoch": 0, "step": 0}}


def save_constant(config: Config, step: int, *, depth: float, mask: float) -> None:
    """A checkpoint of a network that says `depth` and `mask` everywhere."""
    network = make_network(config.model)
    for head, value in zip(heads(network), (depth, math.log(mask / (1 - mask))), strict=True):
        nn.init.zeros_(head.weight)
        assert head.bias is not None
        nn.init.constant_(head.bias, value)
    save_checkpoint(config.run / "checkpoints", step, Checkpoint(network.state_dict(), {}, trained_state(config)))


def save_lively(config: Config, step: int) -> None:
    """A checkpoint of a network whose depth and mask vary with every pixel, mostly within their ranges."""
    torch.manual_seed(step)
    network = make_network(config.model)
    pixels = np.stack([np.concatenate([smooth_pixels(2 * row + part, 48, 48) for part in (0, 1)], 2) for row in (0, 1)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # takes all statistics from one batch
    with torch.no_grad():
        network(images)
        planes: Sequence[Tensor] = network.eval()(images)
        for head, plane, mean, spread in zip(heads(network), planes, (0.5, 0.0), (0.2, 2.0), strict=True):
            assert head.bias is not None
            head.weight *= spread / plane.std()
            head.bias.copy_((head.bias - plane.mean()) * spread / plane.std() + mean)
    save_checkpoint(config.run / "checkpoints", step, Checkpoint(network.state_dict(), {}, trained_state(config)))


def heads(network: nn.Module) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The last layers of a network: of depth, of mask."""
    depth, mask = network.get_submodule("depth_head"), network.get_submodule("mask_head")
    assert isinstance(depth, nn.Conv2d)
    assert isinstance(mask, nn.Conv2d)
    return depth, mask


def save_pair(folder: Path, name: str, seed: int, width: int, height: int) -> tuple[Path, Path]:
    """bg and fgbg of equal sizes as FOLDER/bg/NAME.png and FOLDER/fgbg/NAME.png."""
    files = folder / "bg" / f"{name}.png", folder / "fgbg" / f"{name}.png"
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_pixels(2 * seed + number, width, height)).save(file)
    return files


def read_plane(path: Path) -> NDArray[np.float64]:
    """Depth or mask of a PNG as numbers in [0, 1]."""
    with Image.open(path) as image:
        return np.asarray(image) / (65535 if image.mode == "I;16" else 255)
