"""A data set and a run that take seconds, for checks of behaviour. No figures are to be quoted from them."""

import subprocess
import sys
from pathlib import Path

import yaml

from bench.training import ROOT

TRAIN_SAMPLES, TEST_SAMPLES, BATCH = 120, 40, 12
STEPS = TRAIN_SAMPLES // BATCH
"""Of an epoch."""
FIRST_EPOCHS, SECOND_EPOCHS = 2, 4
"""Of the two stages."""
SAVE_EVERY_STEPS = 7
MAKE_TIMEOUT = 120.0


def make_shards(folder: Path) -> Path:
    """Training and test tuples of 32×32 pixels in shards of 16, made by the real commands."""
    rooms, shards = folder / "rooms", folder / "shards"
    for command in (
        ["sample", str(rooms), "--backgrounds", "4", "--foregrounds", "1", "--size", "32"],
        ["build", str(rooms), str(shards), "--shard-size", "16"],
    ):
        subprocess.run(
            [sys.executable, "-m", "shard_tools", *command],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            timeout=MAKE_TIMEOUT,
        )
    return shards


def write_config(path: Path, *, run: Path, shards: Path, second_epochs: int = SECOND_EPOCHS) -> Path:
    """Write and return a configuration of two stages that logs, saves, evaluates and audits often."""
    path.write_text(
        yaml.safe_dump(
            {
                "run": str(run),
                "data": {"manifest": str(shards), "workers": 1},
                "model": {"width": 0.0625},
                "loss": {"depth": {"mse": 1.0, "gradient": 0.5}, "mask": {"bce": 1.0, "dice": 1.0}},
                "optimizer": {"clip_norm": 1.0, "ema_half_life": 10 * BATCH},
                "stages": [
                    {"size": 16, "batch": BATCH, "epochs": FIRST_EPOCHS},
                    {"size": 32, "batch": BATCH, "epochs": second_epochs, "optimizer_state": "reset"},
                ],
                "checkpoint": {"every": f"{SAVE_EVERY_STEPS} steps"},
                "evaluate": {"every_epochs": 2, "batch": 16},
                "log": {"every_steps": 1, "audit": True},
            }
        )
    )
    return path
