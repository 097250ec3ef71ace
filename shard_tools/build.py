"""From a source to shards and a manifest: the steps of a build, in order. Does no step by itself."""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard_tools.assemble import all_problems, assemble, read_record
from shard_tools.build_folder import check_finished, claim, read_plan, release, writable
from shard_tools.build_plan import BuildOptions, BuildPlan, Packing, plan_build
from shard_tools.build_report import REPORT_NAME, count_tuples, format_problems, write_report
from shard_tools.checks import Problem
from shard_tools.errors import UserError
from shard_tools.layouts import Findings
from shard_tools.layouts.choose import find_tuples
from shard_tools.manifest import MANIFEST_NAME, Manifest, find_manifest
from shard_tools.pack import Packed, ShardTask, pack_shard
from shard_tools.plan import PlannedShard
from shard_tools.progress import progress
from shard_tools.records import ShardRecord
from shard_tools.storage import LocalStorage, Storage, open_storage

Executor = Callable[[Callable[[ShardTask], Packed], Iterable[ShardTask]], Iterator[Packed]]
"""Runs a function over tasks, here or elsewhere, and yields what came of them in any order."""


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`th (1-based) of `count` parts of a build: every `count`th of its shards."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UserError(f"--part {self}: expected I/N with 1 <= I <= N, such as 3/8")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def choose(self, shards: Sequence[PlannedShard]) -> Sequence[PlannedShard]:
        """The shards of this part."""
        return shards[self.number - 1 :: self.count]


def build(
    source: Path, location: str | Path, options: BuildOptions, execute: Executor, part: Part | None = None
) -> str:
    """Pack what `source` holds into shards at `location`, a path or URL; returns a summary to print.

    The bytes depend on the source and on `options`, not on `execute` or `part`. After an interruption the same call
    goes on, keeping shards that are whole; on a finished place it does nothing. With on_bad "fail" any problem stops
    it before the manifest is written, with "skip" bad tuples are left out and counted. A part writes no manifest:
    `merge` does when all are there. Raises UserError.
    """
    out = open_storage(location)
    if isinstance(out, LocalStorage) and out.root.resolve() == source.resolve():
        raise UserError(f"{out.location}: is the source; choose another OUT")
    findings, reason = find_tuples(source, options.layout)
    packing = plan_build(findings, source.resolve().name, options, _begun_with(out)) if findings.tuples else None
    with writable(out):
        finished = find_manifest(out)
        if finished is not None and packing is not None:
            check_finished(out, finished, packing.plan, options.on_bad)
            release(out, packing.plan)
            return f"{out.location}: already complete, nothing to do\n{_summarize(out, finished)}"
        if packing is None or (findings.problems and options.on_bad == "fail"):
            raise _bad_source(out, findings, options, findings.problems)
        recognised = [f"layout: {findings.layout} ({reason})"] if reason else []
        for line in (*recognised, *(f"note: {note}" for note in packing.plan.notes)):
            print(line, file=sys.stderr)  # while there is time to think again
        with claim(out, packing.plan, alone=part is None):
            return _build(packing, out, execute, part)


def _build(packing: Packing, out: Storage, execute: Executor, part: Part | None) -> str:
    told = []
    shards = part.choose(packing.shards) if part else packing.shards
    records, kept = _run(packing, shards, out, execute)
    problems = all_problems(packing.plan, records)
    if problems and packing.options.on_bad == "fail":
        raise _bad_source(out, packing.findings, packing.options, problems, part, packed=True)
    if kept:
        told.append(f"{kept:,} of {len(shards):,} shards were there from an interrupted build and were kept")
    if part is not None:
        return _summarize_part(out, part, shards, packing.plan, told)
    manifest, notes = assemble(out, packing.plan, records)
    return "\n".join([*told, _summarize(out, manifest, notes)])


def merge(location: str | Path) -> str:
    """Write the manifest of a build whose parts are all there; returns a summary to print.

    Raises UserError that names the shards that are missing, or where there is no build.
    """
    out = open_storage(location)
    plan = read_plan(out)
    finished = find_manifest(out)
    if plan is not None and finished is not None and finished.build.get("plan") == plan.digest:
        release(out, plan)  # which an earlier merge did not get done
        plan = None
    if plan is None:
        if finished is None:
            raise UserError(
                f"{out.location}: holds no parts of a build; expected the OUT of `shard-tools build SRC OUT --part I/N`"
            )
        return f"{out.location}: already complete, nothing to do\n{_summarize(out, finished)}"
    with writable(out), claim(out, plan, alone=True):
        records: dict[str, ShardRecord] = {}
        missing = []
        with progress("merging", total=len(plan.shards), unit="shards") as shown:
            for shard in plan.shards:
                record = read_record(out, plan, shard.name)
                if record is None:
                    missing.append(shard.name)
                else:
                    records[shard.name] = record
                shown.advance(1)
        if missing:
            raise UserError(
                f"{out.location}: {len(missing):,} of {len(plan.shards):,} shards are not there yet: "
                f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; run the parts that are missing "
                "(or all of them again: what is done is kept), then merge"
            )
        manifest, notes = assemble(out, plan, records)
    return _summarize(out, manifest, notes)


def _begun_with(out: Storage) -> Mapping[str, Any] | None:
    """The arguments of the build that is in `out`, finished or not, None if there is none."""
    try:
        plan = read_plan(out)
        if plan is not None:
            return plan.arguments
        finished = find_manifest(out)
    except (OSError, UserError):
        return None  # what is wrong there is said when it is used
    return finished.build if finished else None


def _run(
    packing: Packing, shards: Sequence[PlannedShard], out: Storage, execute: Executor
) -> tuple[dict[str, ShardRecord], int]:
    """Pack shards; returns their records by name, and how many were kept."""
    records: dict[str, ShardRecord] = {}
    kept = written = 0
    began = time.monotonic()
    tasks = (packing.task(shard, out) for shard in shards)
    with progress("packing", total=sum(len(shard.indices) for shard in shards), unit="tuples") as shown:
        for packed in execute(pack_shard, tasks):
            records[packed.record.name] = packed.record
            kept += packed.kept
            if packed.record.shard is not None and not packed.kept:
                written += packed.record.shard.bytes
            rate = written / 1e6 / max(time.monotonic() - began, 1e-9)
            shown.show({"MB/s": f"{rate:.0f}"})
            shown.advance(packed.record.tuples)
    return records, kept


def _bad_source(
    out: Storage,
    findings: Findings,
    options: BuildOptions,
    problems: Sequence[Problem],
    part: Part | None = None,
    *,
    packed: bool = False,
) -> UserError:
    name = REPORT_NAME if part is None else REPORT_NAME.replace(".", f"-{part.number}-of-{part.count}.")
    report = write_report(out, found=findings.found, check=options.check, problems=problems, name=name)
    bad = count_tuples(problems)
    unseen = "" if packed else " What is in the other files has not been looked at yet."
    way_out = (
        "Repair them and run the same command again, or leave them out with --on-bad skip."
        if bad < findings.found and options.on_bad == "fail"
        else "None is left to pack."
    )
    return UserError(
        f"{bad:,} of {findings.found:,} tuples cannot be packed:\n{format_problems(problems)}\n"
        f"All of them are in {report}. {way_out}{unseen}"
    )


def _summarize(out: Storage, manifest: Manifest, notes: Sequence[str] = ()) -> str:
    lines = []
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.files)
        lines.append(f"{name}: {split.samples:,} tuples in {len(split.shards):,} shards, {size / 1e6:,.1f} MB")
        if split.backgrounds:
            count = sum(shard.samples for shard in split.backgrounds)
            lines[-1] += f", with {count:,} backgrounds stored once in {len(split.backgrounds):,} of their own"
    lines += [f"note: {note}" for note in notes]
    if manifest.counts.left_out:
        lines.append(
            f"left out: {manifest.counts.left_out:,} of {manifest.counts.found:,} tuples, listed in "
            f"{out.path(REPORT_NAME)}"
        )
    launch = "accelerate launch --config_file accelerate_config.yaml -m dtrain train configs/my.yaml"
    lines.append(f"next, with a copy of configs/demo.yaml: {launch} --data.manifest {shlex.quote(out.location)}")
    return "\n".join(lines)


def _summarize_part(
    out: Storage, part: Part, shards: Sequence[PlannedShard], plan: BuildPlan, told: Sequence[str]
) -> str:
    done = (
        f"part {part}: its {len(shards):,} of {len(plan.shards):,} shards are in {out.location}; no {MANIFEST_NAME} yet"
    )
    following = f"next, when all {part.count} parts are there: shard-tools merge {shlex.quote(out.location)}"
    return "\n".join([*told, done, following])
