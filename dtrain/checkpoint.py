"""Checkpoint folders that are whole or not there. Knows bytes and files, nothing of models or processes.

A checkpoint is CHECKPOINTS/step-00001234/ with model.safetensors, optimizer.pt, state.json and, written last,
files.json, which lists every other file with its size and SHA-256. The folder is written under another name, synced,
and renamed, so a checkpoint with its final name was complete once; `load_newest` checks that it still is.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as weights_to_bytes
from torch import Tensor

from shard_tools.atomic import sync_directory
from shard_tools.errors import UserError

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

    Damaged ones of later steps, behind which the run went back, are removed, or `remove_old` would keep them in place
    of this one. Raises UserError where it can't be written (a full disk); nothing is left under a final name then.
    """
    final = folder / checkpoint_name(global_step)
    unfinished = folder / f".{final.name}.partial"
    if _is_whole(final):
        return final
    optimizer = io.BytesIO()
    torch.save(checkpoint.optimizer, optimizer)
    contents: dict[str, bytes | memoryview] = {
        WEIGHTS: weights_to_bytes(checkpoint.weights),
        OPTIMIZER: optimizer.getbuffer(),
        STATE: json.dumps(checkpoint.state, indent=1).encode(),
    }
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, data in {**contents, FILES: json.dumps(listed, indent=1).encode()}.items():
            _write_durably(unfinished / name, data)
        sync_directory(unfinished)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        sync_directory(folder)
        for path in list_checkpoints(folder):
            if step_of(path.name) > global_step and not _is_whole(path):
                shutil.rmtree(path, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(
                f"{final}: can't be written: {error.strerror}; mend that (make room), then run the same command again"
            ) from error
        raise
    return final


def verify(path: Path) -> None:
    """Raise DamagedCheckpointError unless every listed file is there with its size and SHA-256."""
    try:
        listed = json.loads((path / FILES).read_text())
        if not isinstance(listed, dict) or not {WEIGHTS, OPTIMIZER, STATE} <= listed.keys():
            raise DamagedCheckpointError(f"{FILES} does not list {WEIGHTS}, {OPTIMIZER} and {STATE}")
        for name, expected in listed.items():
            if Path(name).name != name:
                raise DamagedCheckpointError(f"{FILES} lists {name!r}, which is no plain file name")
            found = _fingerprint(path / name)
            if found["bytes"] != expected["bytes"]:
                raise DamagedCheckpointError(f"{name} has {found['bytes']} bytes instead of {expected['bytes']}")
            if found != expected:
                raise DamagedCheckpointError(f"{name} has another SHA-256 than {FILES} says")
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{FILES} can't be read: {error}") from None


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except DamagedCheckpointError:
        return False
    return True


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
    return Checkpoint(
        weights=_load(path / WEIGHTS, load_file),
        optimizer=_load(path / OPTIMIZER, partial(torch.load, map_location="cpu", weights_only=True)),
        state=_load(path / STATE, lambda file: json.loads(file.read_text())),
    )


def remove_old(folder: Path, keep_last: int) -> None:
    """Remove what killed processes left half-written, and all but the newest `keep_last` checkpoints."""
    for path in list_checkpoints(folder)[keep_last:]:
        path.rename(path.with_name(f".{path.name}.removed"))
    for path in (*folder.glob(".step-*.removed"), *folder.glob(".step-*.partial")):
        shutil.rmtree(path, ignore_errors=True)


def _load(path: Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    try:
        return load(path)
    except pickle.UnpicklingError:
        raise DamagedCheckpointError(f"{path.name} holds other things than tensors and plain values") from None
    except (OSError, ValueError, RuntimeError, EOFError, LookupError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path.name} does not load ({type(error).__name__}: {error})") from None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_durably(path: Path, data: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
