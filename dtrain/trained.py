"""A trained network, as `evaluate` and `predict` use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dtrain.best import best_steps, of_last_size
from dtrain.checkpoint import (
    DamagedCheckpointError,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    step_of,
    verify,
)
from dtrain.config import Config
from dtrain.networks import make_network
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode and where it comes from."""

    run: RunFolder
    config: Config
    checkpoint: str
    module: nn.Module
    size: int
    """Side of the images that it was trained on last, in pixels."""


def load_trained(path: Path, checkpoint: str | None, device: torch.device | None = None) -> Trained:
    """Load checkpoint `checkpoint` of the run in `path`, its "best" one, or its newest whole one, to `device`.

    Its averaged weights, where the run has such. The best one is that of all that are there by
    `checkpoint.best_metric`, as evaluated at the ends of epochs.
    Raises UserError if `path` is no run folder, or has no such checkpoint, or only damaged ones.
    """
    run = RunFolder(path).require()
    config = run.load_config()
    if checkpoint == "best":
        checkpoint = _best(run, config)
    if checkpoint is None:
        found, loaded, passed_over = load_newest(run.checkpoints)
        if found is None or loaded is None:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
            raise UserError(f"{run.checkpoints}: holds no whole checkpoint{': ' * bool(reasons)}{reasons}; train first")
    else:
        found = run.checkpoints / checkpoint
        names = [path.name for path in list_checkpoints(run.checkpoints)]
        if checkpoint not in names:
            raise UserError(f"{found}: no such checkpoint; there are: {', '.join(names) or 'none'}")
        try:
            verify(found)
            loaded = load_checkpoint(found)
        except DamagedCheckpointError as error:
            raise UserError(f"{found}: damaged: {error}; choose another one") from None
    module = make_network(config.model)
    module.load_state_dict(loaded.average or loaded.weights)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trained(run, config, found.name, module.to(device).eval(), _last_size(config, loaded.state["position"]))


def _last_size(config: Config, position: Mapping[str, int]) -> int:
    """The image size of the stage of the last step before that position."""
    begins = position["epoch"] == position["step"] == 0
    return config.stages[max(position["stage"] - begins, 0)].size


def _best(run: RunFolder, config: Config) -> str:
    """The name of the best checkpoint that is there."""
    there = {step_of(path.name): path.name for path in list_checkpoints(run.checkpoints)}
    metric = config.checkpoint.best_metric
    figures = {step: value for step, value in of_last_size(run.evaluations(metric)).items() if step in there}
    if not figures:
        raise UserError(
            f"{run.checkpoints}: no checkpoint of the end of an epoch is left that was evaluated; choose another one, "
            "and train with checkpoint.keep_best 1 to keep the best"
        )
    (step,) = best_steps(figures, metric, 1)
    return there[step]
