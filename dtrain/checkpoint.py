"""Checkpoint folders that are whole or not there. Knows bytes and files, nothing of models or processes.

A checkpoint is CHECKPOINTS/step-00001234/ with model.safetensors, optimizer.pt, state.json and, written last,
files.json, which lists every other file with its size and SHA-256. The folder is written under another name, synced,
and renamed, so a checkpoint with its final name was complete once; `load_newest` checks that it still is.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shard_tools.atomic import sync_directory

WEIGHTS, OPTIMIZER, STATE, FILES = "model.safetensors", "optimizer.pt", "state.json", "files.json"

_NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpointError(Exception):
    """Says what is wrong with a checkpoint folder."""


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a run."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    """State of the optimizer, and of the gradient scaler where there is one; tensors and plain values."""
    state: dict[str, Any]
    """Position and identity of the run; JSON."""


def checkpoint_name(global_step: int) -> str:
    return f"step-{global_step:08d}"


def step_of(name: str) -> int:
    """The global step in a checkpoint's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a checkpoint, such as {checkpoint_name(120)}")
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint, the newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: step_of(path.name), reverse=True)


def save_checkpoint(folder: Path, global_step: int, checkpoint: Checkpoint) -> Path:
    """Write `folder`/step-N durably and return it; one that is there already and whole is left as it is.

    OSError (a full disk) leaves nothing under a final name.
    """
    final = folder / checkpoint_name(global_step)
    if final.is_dir():
        try:
            verify(final)
            return final
        except DamagedCheckpointError:
            shutil.rmtree(final)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_file(checkpoint.weights, partial / WEIGHTS)
        torch.save(checkpoint.optimizer, partial / OPTIMIZER)
        (partial / STATE).write_text(json.dumps(checkpoint.state, indent=1))
        listed = {path.name: _fingerprint(path) for path in sorted(partial.iterdir())}
        (partial / FILES).write_text(json.dumps(listed, indent=1))
        for path in partial.iterdir():
            _sync_file(path)
        sync_directory(partial)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_directory(folder)
    return final


def verify(path: Path) -> None:
    """Raise DamagedCheckpointError unless every listed file is there with its size and SHA-256."""
    try:
        listed = json.loads((path / FILES).read_text())
        if not isinstance(listed, dict) or not {WEIGHTS, OPTIMIZER, STATE} <= listed.keys():
            raise DamagedCheckpointError(f"{FILES} does not list {WEIGHTS}, {OPTIMIZER} and {STATE}")
        for name, expected in listed.items():
            found = _fingerprint(path / name)
            if found["bytes"] != expected["bytes"]:
                raise DamagedCheckpointError(f"{name} has {found['bytes']} bytes instead of {expected['bytes']}")
            if found != expected:
                raise DamagedCheckpointError(f"{name} has another SHA-256 than {FILES} says")
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{FILES} can't be read: {error}") from None


def load_newest(folder: Path) -> tuple[Path | None, Checkpoint | None, list[tuple[str, str]]]:
    """The newest checkpoint that is whole and loads, and (name, reason) of those that were passed over.

    A folder that a killed process left half-written counts among the latter.
    """
    passed_over = [
        (path.name, "half-written: its process was killed while saving it")
        for path in (sorted(folder.glob(".step-*.partial")) if folder.is_dir() else [])
    ]
    for path in list_checkpoints(folder):
        try:
            verify(path)
            return path, load_checkpoint(path), passed_over
        except DamagedCheckpointError as error:
            passed_over.append((path.name, str(error)))
    return None, None, passed_over


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU, as data: nothing in it is executed. Raises DamagedCheckpointError."""
    try:
        return Checkpoint(
            weights=load_file(path / WEIGHTS),
            optimizer=torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True),
            state=json.loads((path / STATE).read_text()),
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise DamagedCheckpointError(f"does not load: {error}") from None


def remove_old(folder: Path, keep_last: int) -> None:
    """Remove what killed processes left half-written, and all but the newest `keep_last` checkpoints."""
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    for path in list_checkpoints(folder)[keep_last:]:
        shutil.rmtree(path, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
