"""What a checkpoint costs the training: steps beside a save, against steps without one and a save that is waited for.

python -m bench.saving                      # the full network, 1.2 GB of memory; needs a quiet machine
python -m bench.saving --json saving.json
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.optim import AdamW

from bench.step import synchronize
from bench.turns import Figures
from dtrain.checkpoint import Checkpoint
from dtrain.config import LossConfig
from dtrain.losses import Criterion
from dtrain.model import DepthMaskNet
from dtrain.optimizer import split_state
from dtrain.saver import Saved, Saver
from dtrain.uptime import uptime

MOST_STEPS = 200
"""Beside one save."""


class Training:
    """Steps of a network on one random batch, and the saver of the trainer."""

    def __init__(self, device: torch.device, width: float, size: int, batch: int, folder: Path) -> None:
        self._device = device
        self._module = DepthMaskNet(width).to(device)
        self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._criterion = Criterion(LossConfig())
        self._optimizer = AdamW(self._module.parameters(), 1e-3)
        self._images = torch.rand(batch, 6, size, size, device=device).to(memory_format=torch.channels_last)
        self._target = torch.rand(batch, 1, size, size, device=device)
        self.saver = Saver(folder, keep_last=1, bucket=None, log=(), sync=lambda: None)
        self._steps = 0

    def step(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        prediction = self._module(self._images)
        image = self._images[:, 3:]
        losses = self._criterion(prediction, depth=self._target, mask=self._target, image=image)
        torch.autograd.backward(losses[0])
        self._optimizer.step()
        self._optimizer.zero_grad()
        synchronize(self._device)
        self._steps += 1
        return time.perf_counter() - began

    def save(self, *, urgent: bool) -> float:
        """Seconds for which steps stand still to begin a save."""
        began = time.perf_counter()
        tensors, rest = split_state(self._optimizer.state_dict())
        checkpoint = Checkpoint(self._module.state_dict(), tensors, {"optimizer": rest})
        self.saver.save(self._steps, checkpoint, at=uptime(), keep=lambda steps: (), urgent=urgent)
        return time.perf_counter() - began

    def saved(self) -> Saved:
        """What became of the one save since this was asked last."""
        self.saver.wait()
        (saved,) = self.saver.ended()
        if saved.path is None:
            raise SystemExit(f"bench.saving: {saved.error}")
        return saved


def measure(device: torch.device, *, width: float, size: int, batch: int, rounds: int, folder: Path) -> Figures:
    """Medians over `rounds`, in each of which all kinds take their turn."""
    training = Training(device, width, size, batch, folder)
    for _ in range(3):
        training.step()
    training.save(urgent=True)
    training.saved()
    held, beside, alone, background, waited = [], [], [], [], []
    for _ in range(rounds):
        training.step()
        held.append(training.save(urgent=False))
        steps: list[float] = []
        while training.saver.busy and len(steps) < MOST_STEPS:
            steps.append(training.step())
        background.append(training.saved().seconds)
        # Steps at the very end of a save were only partly beside it.
        beside += steps[:-1] or steps
        alone += [training.step() for _ in range(max(len(steps), 5))]
        began = time.perf_counter()
        training.save(urgent=True)
        training.saved()
        waited.append(time.perf_counter() - began)
    step = statistics.median(alone)
    return {
        "step_seconds": step,
        "steps_beside_saves": len(beside),
        "step_beside_save": statistics.median(beside) / step,
        "mean_step_beside_save": statistics.fmean(beside) / statistics.fmean(alone),
        "held_up_seconds": statistics.median(held),
        "save_in_background_seconds": statistics.median(background),
        "save_waited_for_seconds": statistics.median(waited),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=float, default=1.0, help="of the network (default: 1, 24 million parameters)")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(
            torch.device(arguments.device),
            width=arguments.width,
            size=arguments.size,
            batch=arguments.batch,
            rounds=arguments.rounds,
            folder=Path(folder) / "checkpoints",
        )
    for name, value in figures.items():
        print(f"{name:30}{value:10.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
