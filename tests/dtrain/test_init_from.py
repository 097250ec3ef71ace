"""Weights to begin with: from a run, a checkpoint or a file, and what is said where they don't fit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dtrain.checkpoint import Checkpoint, save_checkpoint
from dtrain.config import Config
from dtrain.init_from import init_weights
from dtrain.model import DepthMaskNet
from shard_tools.errors import UserError

WIDTH = 1 / 32


@pytest.fixture
def trained(make_config: Callable[..., Config]) -> tuple[Path, DepthMaskNet, DepthMaskNet]:
    """A run folder, its newest weights, and their average."""
    config = make_config()
    config.run.mkdir()
    (config.run / "config.yaml").write_text(config.to_yaml())
    weights, average = DepthMaskNet(WIDTH), DepthMaskNet(WIDTH)
    folder = config.run / "checkpoints"
    save_checkpoint(folder, 3, Checkpoint(DepthMaskNet(WIDTH).state_dict(), {}, {}))
    save_checkpoint(folder, 5, Checkpoint(weights.state_dict(), {}, {}, average.state_dict()))
    return config.run, weights, average


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_from_a_run_its_newest_checkpoint_averaged_where_it_is(
    trained: tuple[Path, DepthMaskNet, DepthMaskNet],
) -> None:
    run, _, average = trained
    module = DepthMaskNet(WIDTH)
    init_weights(module, str(run))
    assert same(module, average)
    (run / "checkpoints/step-00000005/model.safetensors").write_bytes(b"damaged")
    init_weights(module, str(run))
    assert not same(module, average), "a damaged one is passed over"


def test_from_a_checkpoint_and_from_a_file(trained: tuple[Path, DepthMaskNet, DepthMaskNet], tmp_path: Path) -> None:
    run, weights, average = trained
    module = DepthMaskNet(WIDTH)
    init_weights(module, str(run / "checkpoints/step-00000005"))
    assert same(module, average)
    file = run / "checkpoints/step-00000005/model.safetensors"
    init_weights(module, str(file))
    assert same(module, weights)


def test_what_does_not_fit_is_said(trained: tuple[Path, DepthMaskNet, DepthMaskNet], tmp_path: Path) -> None:
    run, weights, _ = trained
    wide = DepthMaskNet(2 * WIDTH)
    before = {key: value.clone() for key, value in wide.state_dict().items()}
    with pytest.raises(UserError, match=r"init_from: .*run: encoder1a.0.weight is \(2, 6, 3, 3\), but \(4, 6, 3, 3\)"):
        init_weights(wide, str(run))
    assert all(torch.equal(value, before[key]) for key, value in wide.state_dict().items()), "nothing half-loaded"
    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors: has no encoder1a.0.weight; and \d+ more like this"):
        init_weights(weights, str(tmp_path / "other.safetensors"))
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(UserError, match=r"init_from: .*text.safetensors: can't be read"):
        init_weights(weights, str(tmp_path / "text.safetensors"))
    with pytest.raises(UserError, match=r"init_from: .*nowhere: expected a run folder, a checkpoint or"):
        init_weights(weights, str(tmp_path / "nowhere"))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"init_from: .*checkpoints: holds no whole checkpoint; train it first"):
        init_weights(weights, str(run))
