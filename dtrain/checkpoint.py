"""Checkpoint folders that are whole or not there. Knows bytes and files, nothing of models or processes.

A checkpoint is CHECKPOINTS/step-00001234/ with model.safetensors, optimizer.safetensors, state.json, where the run
averages its weights average.safetensors, and, written last, files.json: size and SHA-256 of every other file.
The folder is written under another name, synced, renamed, its parent synced, and read back, so a checkpoint with its
final name was complete once; `verify` checks that it still is. All of it is data: nothing that is loaded is executed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dtrain.tensor_file import pieces
from shard_tools.atomic import sync_directory
from shard_tools.errors import UserError

WEIGHTS, OPTIMIZER, STATE, FILES = "model.safetensors", "optimizer.safetensors", "state.json", "files.json"
AVERAGE = "average.safetensors"

_NAME = re.compile(r"step-(\d{8,})")


Keep = Callable[[Collection[int]], Collection[int]]
"""Which of the checkpoints of these steps are to be kept, besides the newest ones."""


class DamagedCheckpointError(Exception):
    """Says what is wrong with a checkpoint folder."""


class CancelledError(Exception):
    """The checkpoint is not wanted any more; nothing of it is left."""


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a run."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """The tensors of the optimizer's state."""
    state: dict[str, Any]
    """All else: position and identity of the run, the optimizer's numbers; JSON."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """Averaged weights, where the run has such."""


def checkpoint_name(global_step: int) -> str:
    return f"step-{global_step:08d}"


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name may be a checkpoint."""
    return _NAME.fullmatch(name) is not None


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
    found = [path for path in folder.iterdir() if path.is_dir() and is_checkpoint(path.name)]
    return sorted(found, key=lambda path: step_of(path.name), reverse=True)


def save_checkpoint(
    folder: Path, global_step: int, checkpoint: Checkpoint, *, cancelled: Callable[[], bool] = lambda: False
) -> Path:
    """Write `folder`/step-N durably, read it back and return it; one that is there already and whole is left as it is.

    `folder` is made if only it is missing. Damaged ones of later steps, behind which the run went back, are removed, or
    `remove_old` would keep them in place of this one. Raises UserError where it can't be written (a full disk), and
    CancelledError once `cancelled` says so, which is asked for every few megabytes; nothing is left then.
    """
    final = folder / checkpoint_name(global_step)
    unfinished = folder / f".{final.name}.partial"
    if final.exists() and _is_whole(final):
        return final
    contents: dict[str, Iterable[bytes | memoryview]] = {
        WEIGHTS: pieces(checkpoint.weights),
        OPTIMIZER: pieces(checkpoint.optimizer),
        STATE: [json.dumps(checkpoint.state, indent=1).encode()],
    }
    if checkpoint.average:
        contents[AVERAGE] = pieces(checkpoint.average)
    try:
        folder.mkdir(exist_ok=True)
        sync_directory(folder.parent)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        listed = {name: _write_durably(unfinished / name, data, cancelled) for name, data in contents.items()}
        _write_durably(unfinished / FILES, [json.dumps(listed, indent=1).encode()], cancelled)
        sync_directory(unfinished)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        sync_directory(folder)
        verify(final)
        for path in list_checkpoints(folder):
            if step_of(path.name) > global_step and not _is_whole(path):
                shutil.rmtree(path, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, DamagedCheckpointError):
            shutil.rmtree(final, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(
                f"{final}: can't be written: {error.strerror}; mend that (make room), then run the same command again"
            ) from error
        if isinstance(error, DamagedCheckpointError):
            raise UserError(
                f"{final}: the disk gives back other bytes than were written ({error}); look at the disk"
            ) from None
        raise
    return final


def verify(path: Path) -> None:
    """Raise DamagedCheckpointError unless every listed file is there with its size and SHA-256."""
    try:
        listed = json.loads((path / FILES).read_text())
        if isinstance(listed, dict) and "optimizer.pt" in listed:
            raise DamagedCheckpointError("written by an earlier version, which has to end this run")
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
        optimizer=_load(path / OPTIMIZER, load_file),
        state=_load(path / STATE, lambda file: json.loads(file.read_text())),
        average=_load(path / AVERAGE, load_file) if (path / AVERAGE).exists() else {},
    )


def remove_old(folder: Path, keep_last: int, keep: Keep = lambda steps: ()) -> None:
    """Remove what killed processes left half-written, and all checkpoints but the newest and those to `keep`."""
    found = list_checkpoints(folder)
    kept = keep([step_of(path.name) for path in found])
    for path in found[keep_last:]:
        if step_of(path.name) not in kept:
            path.rename(path.with_name(f".{path.name}.removed"))
    sync_directory(folder)
    for path in (*folder.glob(".step-*.removed"), *folder.glob(".step-*.partial")):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, names: Iterable[str]) -> None:
    """Take damaged checkpoints for removed ones, so that they don't push out a whole one; gone with the next save."""
    for name in names:
        if is_checkpoint(name) and (folder / name).exists():
            (folder / name).rename(folder / f".{name}.removed")


def _load(path: Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    try:
        return load(path)
    except (OSError, ValueError, RuntimeError, EOFError, LookupError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path.name} does not load ({type(error).__name__}: {error})") from None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_durably(
    path: Path, data: Iterable[bytes | memoryview], cancelled: Callable[[], bool]
) -> dict[str, int | str]:
    """Write a file and return its entry for the list of files."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for piece in data:
            if cancelled():
                raise CancelledError
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
