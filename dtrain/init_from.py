"""Weights to begin a run with, from another run or a file. Reads; never writes."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dtrain.checkpoint import FILES, DamagedCheckpointError, load_checkpoint, load_newest, verify
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError


def init_weights(module: nn.Module, place: str) -> None:
    """Load weights into `module`, whatever image size they were trained at; they must be those of such a network.

    `place`: a run folder (its newest whole checkpoint; averaged weights where there are such), a checkpoint, or a
    .safetensors file. Raises UserError that names it, and says what does not fit.
    """
    weights = _read(Path(place).expanduser())
    own = module.state_dict()
    wrong = [
        *(f"has no {name}" for name in own if name not in weights),
        *(f"has {name}, which the network has not" for name in weights if name not in own),
        *(
            f"{name} is {tuple(weights[name].shape)}, but {tuple(tensor.shape)} in the network"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    ]
    if wrong:
        more = f"; and {len(wrong) - 1} more like this" if len(wrong) > 1 else ""
        raise UserError(f"init_from: {place}: {wrong[0]}{more}; it has to be the same `model`, also in width")
    module.load_state_dict(weights)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.is_file():
            return load_file(path)
        if (path / FILES).is_file():
            verify(path)
            checkpoint = load_checkpoint(path)
            return checkpoint.average or checkpoint.weights
    except (OSError, SafetensorError, DamagedCheckpointError) as error:
        raise UserError(f"init_from: {path}: can't be read: {error}") from None
    run = RunFolder(path)
    if not run.config.is_file():
        raise UserError(f"init_from: {path}: expected a run folder, a checkpoint or a .safetensors file")
    _, newest, _ = load_newest(run.checkpoints)
    if newest is None:
        raise UserError(f"init_from: {run.checkpoints}: holds no whole checkpoint; train it first")
    return newest.average or newest.weights
