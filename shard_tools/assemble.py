"""From the records of all shards to the manifest, the last step of a build. Writes no shard and reads no source."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from shard_tools.build_folder import release
from shard_tools.build_plan import BuildPlan
from shard_tools.build_report import count_tuples, format_problems, write_report
from shard_tools.checks import Problem
from shard_tools.errors import UserError
from shard_tools.manifest import MANIFEST_NAME, Component, Counts, Manifest, Shard, Split
from shard_tools.records import ComponentSeen, ShardRecord, find_changed, merge_components, notes_on_images, record_name
from shard_tools.storage import Storage


def all_problems(plan: BuildPlan, records: Mapping[str, ShardRecord]) -> tuple[Problem, ...]:
    """What the scan and the tasks found wrong; a bad background counts with its tuples, not for itself."""
    tasks = (records[shard.name] for shard in plan.shards if shard.name in records and not shard.backgrounds)
    return (*plan.problems, *(problem for record in tasks for problem in record.problems))


def read_record(out: Storage, plan: BuildPlan, name: str) -> ShardRecord | None:
    """The record of a finished shard of this plan, None if there is none that can be read."""
    try:
        record = ShardRecord.model_validate_json(out.read(record_name(name)))
    except (FileNotFoundError, ValidationError):
        return None
    return record if record.plan == plan.digest else None


def assemble(out: Storage, plan: BuildPlan, records: Mapping[str, ShardRecord]) -> tuple[Manifest, list[str]]:
    """Write report and manifest, in this order, and remove the state of the build; returns it with notes for the user.

    `records` has one for each shard of the plan. Raises UserError where a shard is not there or the shards do not go
    together, or a split has no tuple; then the state stays as it is.
    """
    records = {shard.name: records[shard.name] for shard in plan.shards}
    _check_files(out, records)
    _check_backgrounds(out, plan, records)
    if changed := find_changed(records.values()):
        raise UserError(
            f"background {changed.background} changed while the build ran: {changed.shards[0]} and {changed.shards[1]} "
            "hold different versions of it; let the source rest and run the same command again, which builds anew "
            "only the shards whose files changed"
        )
    problems = all_problems(plan, records)
    write_report(out, found=plan.found, check=plan.arguments["check"], problems=problems)
    manifest = _manifest(plan, records, problems)
    out.settle()
    out.write(MANIFEST_NAME, manifest.text())
    out.settle()
    for name, record in records.items():
        if record.shard is None:  # what an earlier attempt may have left there
            out.remove(f"{name}.tar")
            out.remove(f"{name}.idx")
    release(out, plan)
    hint = "" if plan.arguments["check"] == "decode" else ". --check decode refuses those with coloured pixels"
    return manifest, [*plan.notes, *notes_on_images(_components(plan, records), hint)]


def _check_files(out: Storage, records: Mapping[str, ShardRecord]) -> None:
    """Where workers do not see the same OUT, records can come from shards that lie elsewhere."""
    there = out.names()
    shards = [record.shard for record in records.values() if record.shard is not None]
    missing = [shard.file for shard in shards if not {shard.file, shard.index} <= there]
    if missing:
        raise UserError(
            f"{out.location}: {len(missing):,} of {len(shards):,} shards that were packed are not there: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; does every worker see this folder under the "
            "same name? Then run the same command again"
        )


def _check_backgrounds(out: Storage, plan: BuildPlan, records: Mapping[str, ShardRecord]) -> None:
    """Every background that a tuple refers to must have come into a shard of backgrounds."""
    if not any(shard.backgrounds for shard in plan.shards):
        return
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        used: set[str] = set()
        held: set[str] = set()
        for shard in plan.shards:
            if shard.split == split and records[shard.name].shard is not None:
                (held if shard.backgrounds else used).update(records[shard.name].backgrounds)
        if lost := sorted(used - held):
            problems = [p for s in plan.shards if s.backgrounds for p in records[s.name].problems if p.key in lost]
            for shard in plan.shards:
                if shard.backgrounds and shard.split == split:
                    out.remove(record_name(shard.name))
            raise UserError(
                f"{len(lost):,} backgrounds could be read for their tuples, and not for themselves:\n"
                f"{format_problems(problems)}\nRun the same command again."
            )


def _manifest(plan: BuildPlan, records: Mapping[str, ShardRecord], problems: Sequence[Problem]) -> Manifest:
    splits = {}
    for name in dict.fromkeys(shard.split for shard in plan.shards):
        tuples, backgrounds = (_shards(plan, records, name, backgrounds=which) for which in (False, True))
        if not tuples:
            raise UserError(f"none of the {name} split's tuples can be packed:\n{format_problems(problems)}")
        splits[name] = Split(samples=sum(shard.samples for shard in tuples), shards=tuples, backgrounds=backgrounds)
    seen = _components(plan, records)
    left_out = count_tuples(problems)
    build: dict[str, Any] = {**plan.arguments, "on_bad": "skip" if left_out else "fail", "plan": plan.digest}
    return Manifest(
        components=tuple(
            Component(name=name, extension=extension, mode=",".join(seen[name].modes), size=seen[name].size)
            for name, extension in plan.components
        ),
        splits=splits,
        counts=Counts(found=plan.found, packed=sum(split.samples for split in splits.values()), left_out=left_out),
        build=build,
    )


def _components(plan: BuildPlan, records: Mapping[str, ShardRecord]) -> dict[str, ComponentSeen]:
    """What the images of all tuples look like."""
    return merge_components(
        [records[shard.name].components for shard in plan.shards if not shard.backgrounds], dict(plan.components)
    )


def _shards(plan: BuildPlan, records: Mapping[str, ShardRecord], split: str, *, backgrounds: bool) -> tuple[Shard, ...]:
    names = (shard.name for shard in plan.shards if shard.split == split and shard.backgrounds == backgrounds)
    return tuple(shard for name in names if (shard := records[name].shard) is not None)
