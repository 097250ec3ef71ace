"""The state of a place to build in: empty, being built, finished, or somebody else's. Never writes a shard."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shard_tools.atomic import PARTIAL_SUFFIX
from shard_tools.build_plan import BuildPlan
from shard_tools.errors import UserError
from shard_tools.manifest import MANIFEST_NAME, Manifest
from shard_tools.records import DIGEST_NAME, RECORDS, STATE
from shard_tools.storage import LocalStorage, Storage

PLAN_NAME = f"{STATE}/plan.json"
LOCK_NAME = f"{STATE}/lock"


def check_finished(out: Storage, manifest: Manifest, plan: BuildPlan, on_bad: str) -> None:
    """Raise UserError unless `manifest` is of this plan and its files have the sizes it says."""
    now: dict[str, Any] = dict(plan.arguments)
    if manifest.counts.left_out and on_bad == "fail":
        now["on_bad"] = on_bad
    _refuse_other(out, manifest.build, now)
    if manifest.build.get("plan") != plan.digest:
        raise _other_sources(out)
    there = out.names()
    for split in manifest.splits.values():
        for shard in split.files:
            if {shard.file, shard.index} <= there and out.size(shard.file) == shard.bytes:
                continue
            raise UserError(
                f"{out.location}: {MANIFEST_NAME} lists {shard.file} of {shard.bytes:,} bytes with {shard.index}, but "
                "they are not there like that; remove the folder and build again"
            )


@contextmanager
def writable(out: Storage) -> Iterator[None]:
    """Make the folder `out`, and turn whatever keeps the block from writing there into a UserError."""
    try:
        if isinstance(out, LocalStorage):
            out.root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or out.location}: cannot be written: {error.strerror or error}; "
            "OUT has to be a folder that you may write to, on a disk with room; then the same command goes on"
        ) from None


@contextmanager
def claim(out: Storage, plan: BuildPlan, *, alone: bool) -> Iterator[None]:
    """Make `out` this plan's for as long as the block lasts, `alone` or beside other parts of the same plan.

    Raises UserError when another build has begun there or is running, or foreign files have the names of its shards.
    What is built stays unfinished until `release`. A place behind a URL knows no locks.
    """
    with _locked(out.root, alone=alone) if isinstance(out, LocalStorage) else nullcontext():
        if alone:
            _remove_partials(out, plan)
        begun = read_plan(out)
        if begun is None:
            _refuse_foreign(out, plan)
            out.write(PLAN_NAME, plan.model_dump_json(indent=1))
        else:
            _refuse_other(out, begun.arguments, plan.arguments)
            if begun.digest != plan.digest:
                raise _other_sources(out)
        out.write(DIGEST_NAME, plan.digest)
        yield


def read_plan(out: Storage) -> BuildPlan | None:
    """The plan of the build that was begun in `out`, None if there is none. Raises UserError if it is damaged."""
    try:
        return BuildPlan.model_validate_json(out.read(PLAN_NAME))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise UserError(
            f"{out.path(PLAN_NAME)}: not the plan of a build by this version; "
            f"remove {out.path(STATE)} or choose another OUT"
        ) from None


def release(out: Storage, plan: BuildPlan) -> None:
    """Remove the state of a build, and what killed processes left half-written under other names."""
    _remove_partials(out, plan)
    out.remove_folder(RECORDS)
    out.remove_folder(STATE)


def _remove_partials(out: Storage, plan: BuildPlan) -> None:
    if isinstance(out, LocalStorage):
        shards = {shard.name for shard in plan.shards}
        for name in out.names():
            if name.endswith(PARTIAL_SUFFIX) and name.partition(".")[0] in shards:
                out.remove(name)


@contextmanager
def _locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock on `folder` that ends with this process, however that ends.

    It is on a file that is open for writing, without which NFS gives no lock to one alone.
    """
    (folder / STATE).mkdir(exist_ok=True)
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another build is writing here; wait for it or choose another OUT") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _refuse_other(out: Storage, begun: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise UserError that names the arguments in which the build in `out` differs, if any."""
    different = [
        f"{name} {json.dumps(begun.get(name), ensure_ascii=False)} (now {json.dumps(value, ensure_ascii=False)})"
        for name, value in arguments.items()
        if begun.get(name) != value
    ]
    if different:
        raise UserError(
            f"{out.location}: holds another build, with {', '.join(different)}; "
            "choose another OUT, or remove this folder, or give the same arguments"
        )


def _other_sources(out: Storage) -> UserError:
    return UserError(
        f"{out.location}: holds a build of the same arguments, but the files of the source are not those it began "
        "with; choose another OUT or remove this folder"
    )


def _refuse_foreign(out: Storage, plan: BuildPlan) -> None:
    there = out.names()
    for shard in plan.shards:
        for file in (f"{shard.name}.tar", f"{shard.name}.idx"):
            if file in there:
                raise UserError(
                    f"{out.location}: holds {file}, which this build would overwrite but did not write; "
                    "choose another OUT or remove it"
                )
