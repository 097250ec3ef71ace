"""From a source tree to shards and a manifest: the steps of a build, in order. Does no step by itself."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shard_tools.build_folder import check_finished, claim, finished_manifest, plan_digest, release, writable
from shard_tools.build_report import REPORT_NAME, count_tuples, format_problems, write_report
from shard_tools.checks import Problem
from shard_tools.errors import UserError
from shard_tools.layouts import COMPONENTS, Findings, nested
from shard_tools.manifest import Component, Counts, Manifest, Split
from shard_tools.pack import OnBad, ShardRecord, ShardTask, merge_components, pack_shard
from shard_tools.plan import PlannedShard, plan_shards
from shard_tools.progress import progress
from shard_tools.split import split_by_index
from shard_tools.workers import run_tasks


def build(
    source: Path,
    out: Path,
    *,
    train: int | None,
    test: int | None,
    shard_size: int,
    seed: int,
    on_bad: OnBad,
    workers: int,
) -> str:
    """Pack the tree `source` into shards in `out`; returns a summary to print.

    The bytes of `out` depend on the source and on all arguments but `workers`. After an interruption the same call
    goes on, keeping shards that are whole; on a finished folder it does nothing. `train` and `test` are numbers of
    tuples (None: those of 3/4 of the backgrounds; all the rest). With on_bad "fail" any problem stops it before the
    manifest is written, with "skip" bad tuples are left out and counted. Raises UserError.
    """
    arguments = {
        "layout": nested.NAME,
        "source": source.resolve().name.encode(errors="replace").decode(),
        "train": train,
        "test": test,
        "shard_size": shard_size,
        "seed": seed,
    }
    finished = finished_manifest(out, {**arguments, "on_bad": on_bad})
    findings = nested.scan(source)
    digest = plan_digest(arguments, findings)
    if finished is not None:
        check_finished(out, finished, digest)
        release(out)
        return f"{out}: already complete, nothing to do\n{_summarize(out, finished)}"

    with writable(out):
        if findings.problems and on_bad == "fail":
            raise _bad_source(out, findings, findings.problems)
        if not findings.tuples:
            report = write_report(out, found=findings.found, problems=findings.problems)
            raise UserError(
                f"none of the {findings.found:,} tuples can be packed:\n{format_problems(findings.problems)}\n"
                f"All of them are in {report}."
            )
        split = split_by_index(findings.per_background, train=train, test=test)
        planned = plan_shards(split.splits, shard_size=shard_size, seed=seed)
        with claim(out, arguments, digest, [shard.name for shard in planned]) as records_folder:
            tasks = _tasks(planned, findings, source=source, out=out, records=records_folder, on_bad=on_bad)
            records, kept = _run(tasks, sum(map(len, split.splits.values())), workers)
            problems = (*findings.problems, *(problem for record in records.values() for problem in record.problems))
            if problems and on_bad == "fail":
                raise _bad_source(out, findings, problems)
            if problems:
                write_report(out, found=findings.found, problems=problems)
            else:
                (out / REPORT_NAME).unlink(missing_ok=True)
            built_by = {**arguments, "on_bad": on_bad, "plan": digest}
            manifest = _manifest(planned, records, findings, built_by, problems)
            manifest.write(out)
            release(out)
    notes = [*findings.notes, *split.notes]
    if kept:
        notes.append(f"{kept:,} of {len(planned):,} shards were there from an interrupted build and were kept")
    return _summarize(out, manifest, notes)


def _tasks(
    planned: Sequence[PlannedShard], findings: Findings, *, source: Path, out: Path, records: Path, on_bad: OnBad
) -> Iterator[ShardTask]:
    """One task a shard; its tuples are named only when it is asked for."""
    for shard in planned:
        yield ShardTask(
            name=shard.name,
            source=source,
            out=out,
            records=records,
            tuples=tuple(findings.tuples[int(index)] for index in shard.indices),
            extensions=findings.extensions,
            on_bad=on_bad,
        )


def _run(tasks: Iterator[ShardTask], total: int, workers: int) -> tuple[dict[str, ShardRecord], int]:
    """Pack all shards; returns their records by name, and how many were kept."""
    records: dict[str, ShardRecord] = {}
    kept = written = 0
    began = time.monotonic()
    with progress("packing", total=total, unit="tuples") as shown:
        for packed in run_tasks(pack_shard, tasks, workers):
            records[packed.record.name] = packed.record
            kept += packed.kept
            if packed.record.shard is not None and not packed.kept:
                written += packed.record.shard.bytes
            rate = written / 1e6 / max(time.monotonic() - began, 1e-9)
            shown.show({"MB/s": f"{rate:.0f}"})
            shown.advance(packed.record.tuples)
    return records, kept


def _bad_source(out: Path, findings: Findings, problems: Sequence[Problem]) -> UserError:
    report = write_report(out, found=findings.found, problems=problems)
    return UserError(
        f"{count_tuples(problems):,} of {findings.found:,} tuples cannot be packed:\n{format_problems(problems)}\n"
        f"All of them are in {report}. Repair them and run the same command again, or leave them out with "
        "--on-bad skip."
    )


def _manifest(
    planned: Sequence[PlannedShard],
    records: dict[str, ShardRecord],
    findings: Findings,
    arguments: dict[str, Any],
    problems: Sequence[Problem],
) -> Manifest:
    splits = {}
    for name in dict.fromkeys(shard.split for shard in planned):
        shards = [records[shard.name].shard for shard in planned if shard.split == name]
        whole = tuple(shard for shard in shards if shard is not None)
        if not whole:
            raise UserError(f"none of the {name} split's tuples can be packed:\n{format_problems(problems)}")
        splits[name] = Split(samples=sum(shard.samples for shard in whole), shards=whole)
    seen = merge_components(records.values())
    return Manifest(
        components=tuple(
            Component(name=name, extension=extension, mode=",".join(seen[name].modes), size=seen[name].size)
            for name, extension in zip(COMPONENTS, findings.extensions, strict=True)
        ),
        splits=splits,
        counts=Counts(
            found=findings.found,
            packed=sum(split.samples for split in splits.values()),
            left_out=count_tuples(problems),
        ),
        build=arguments,
    )


def _summarize(out: Path, manifest: Manifest, notes: Sequence[str] = ()) -> str:
    lines = []
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        lines.append(f"{name}: {split.samples:,} tuples in {len(split.shards):,} shards, {size / 1e6:,.1f} MB")
    lines += [f"note: {note}" for note in notes]
    if manifest.counts.left_out:
        lines.append(
            f"left out: {manifest.counts.left_out:,} of {manifest.counts.found:,} tuples, listed in {out / REPORT_NAME}"
        )
    launch = "accelerate launch --config_file accelerate_config.yaml -m dtrain train configs/demo.yaml"
    lines.append(f"next: {launch} --data.manifest {out}")
    return "\n".join(lines)
