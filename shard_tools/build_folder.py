"""The state of an output folder: empty, being built, finished, or somebody else's. Never writes a shard."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shard_tools.atomic import write_atomically
from shard_tools.errors import UserError
from shard_tools.layouts import Findings
from shard_tools.manifest import MANIFEST_NAME, Manifest, read_manifest

STATE_NAME = ".build"
_PLAN_NAME = "plan.json"
_FORMAT = 1
"""Of everything that turns the same input into other bytes; a higher number refuses what an older version began."""


class _Plan(BaseModel):
    """What an unfinished build remembers of the command that began it."""

    arguments: dict[str, Any]
    digest: str

    @classmethod
    def read(cls, path: Path) -> "_Plan":
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError:
            raise UserError(f"{path}: not the plan of a build; remove {path.parent} or choose another OUT") from None


def plan_digest(arguments: Mapping[str, Any], findings: Findings) -> str:
    """SHA-256 of the arguments and of the names of all tuples' files, in order."""
    digest = hashlib.sha256(json.dumps([_FORMAT, dict(arguments)], sort_keys=True).encode())
    for item in findings.tuples:
        digest.update("\0".join((item.key, *item.files, item.metadata, "")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def finished_manifest(out: Path, arguments: Mapping[str, Any]) -> Manifest | None:
    """The manifest that `out` holds, None if there is none.

    Raises UserError when it was built with other arguments.
    """
    if not (out / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(out)
    _refuse_other(out, manifest.build, arguments)
    return manifest


def check_finished(out: Path, manifest: Manifest, digest: str) -> None:
    """Raise UserError unless `manifest` is of the plan `digest` and its files have the sizes it says."""
    if manifest.build.get("plan") != digest:
        raise _other_sources(out)
    for split in manifest.splits.values():
        for shard in split.shards:
            with suppress(OSError):
                if (out / shard.file).stat().st_size == shard.bytes and (out / shard.index).exists():
                    continue
            raise UserError(
                f"{out}: {MANIFEST_NAME} lists {shard.file} of {shard.bytes:,} bytes with {shard.index}, but they are "
                "not there like that; remove the folder and build again"
            )


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """Make the folder `out`, and turn whatever keeps the block from writing there into a UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}; "
            "OUT has to be a folder that you may write to, on a disk with room; then the same command goes on"
        ) from None


@contextmanager
def claim(out: Path, arguments: Mapping[str, Any], digest: str, shards: Iterable[str]) -> Iterator[Path]:
    """Make `out` this build's, alone, and yield the folder of its records.

    Raises UserError when another build has begun there or is running, or foreign files have the names of `shards`
    (without extension). The folder of records outlives the block; `release` removes it.
    """
    state = out / STATE_NAME
    with _locked(out):
        state.mkdir(exist_ok=True)
        plan = state / _PLAN_NAME
        if plan.exists():
            begun = _Plan.read(plan)
            _refuse_other(out, begun.arguments, arguments)
            if begun.digest != digest:
                raise _other_sources(out)
        else:
            _refuse_foreign(out, shards)
            write_atomically(plan, _Plan(arguments=dict(arguments), digest=digest).model_dump_json(indent=1))
        yield state


def release(out: Path) -> None:
    """Remove the folder of records."""
    shutil.rmtree(out / STATE_NAME, ignore_errors=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold a lock on `out` that ends with this process, however that ends."""
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another build is writing here; wait for it or choose another OUT") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _refuse_other(out: Path, begun: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise UserError that names the arguments in which the build in `out` differs, if any."""
    different = [
        f"{name} {json.dumps(begun.get(name), ensure_ascii=False)} (now {json.dumps(value, ensure_ascii=False)})"
        for name, value in arguments.items()
        if begun.get(name) != value
    ]
    if different:
        raise UserError(
            f"{out}: holds another build, with {', '.join(different)}; "
            "choose another OUT, or remove this folder, or give the same arguments"
        )


def _other_sources(out: Path) -> UserError:
    return UserError(
        f"{out}: holds a build of the same arguments, but the files of the source are not those it began with; "
        "choose another OUT or remove this folder"
    )


def _refuse_foreign(out: Path, shards: Iterable[str]) -> None:
    there = {entry.name for entry in os.scandir(out)}
    for name in shards:
        for file in (f"{name}.tar", f"{name}.idx"):
            if file in there:
                raise UserError(
                    f"{out}: holds {file}, which this build would overwrite but did not write; "
                    "choose another OUT or remove it"
                )
