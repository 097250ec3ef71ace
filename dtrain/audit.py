"""Proof, from what its processes wrote down, that a run saw the samples of its order, each once an epoch.

Reads the run folder and the indexes of the shards, and changes nothing. Memory: some 64-bit numbers for each sample of
an epoch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtrain.audit_files import AuditLine, RankFile, RunStart, read_starts, written_ranks
from dtrain.audit_keys import Hashes, SampleTable, hash_keys
from dtrain.data.order import EpochOrder, Position, SampleRefs, rows_of_rank
from dtrain.plan import RunPlan, StagePlan, plan_run
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError
from shard_tools.manifest import open_shards

MOST_PROBLEMS = 20

Places = NDArray[np.intp]


def audit_run(path: Path) -> str:
    """Prove that the run in folder `path` kept its order and saw each sample once an epoch; the proof, in numbers.

    Of a run that is not done, what there is of it. Raises UserError with what broke, or if nothing was written down.
    """
    run = RunFolder(path).require()
    config = run.load_config()
    if config.data.loader == "webdataset":
        raise UserError(f"{path}: was trained with data.loader webdataset, which has no fixed order to be proved")
    if not written_ranks(run.audit):
        raise UserError(
            f"{run.audit}: no audit files; a training writes them that has --audit (log.audit: true) from its "
            "first start on"
        )
    storage, manifest = open_shards(config.data.manifest)
    shards = manifest.split(config.data.train_split).shards
    plan = plan_run(config, [shard.samples for shard in shards], rank=0, world_size=1)
    samples = SampleTable(storage, shards[: max(len(stage.shard_lengths) for stage in plan.stages)])
    return Audit(run, plan, samples, manifest.digest()).prove()


@dataclass(frozen=True)
class Part:
    """What one start did of one epoch."""

    start: RunStart
    stage: StagePlan
    epoch: int
    first: int
    """The step with which the start comes in."""
    kept: float
    """The steps before this one count; the others are done again by a later start."""
    order: EpochOrder

    @property
    def steps(self) -> int:
        """Global batches in the epoch."""
        return self.stage.steps_of(self.epoch)

    def __str__(self) -> str:
        return f"start {self.start.number}, stage {self.stage.number}, epoch {self.epoch}"


class Audit:
    """One pass over the files of a run: start after start, epoch after epoch, process after process."""

    def __init__(self, run: RunFolder, plan: RunPlan, samples: SampleTable, data: str) -> None:
        self._run = run
        self._plan = plan
        self._samples = samples
        self._problems: list[str] = []
        self._unnamed = 0
        self._status = run.read_status()
        self._starts, gone_back, self._torn_events = read_starts(run.events, plan, data)
        ranks = written_ranks(run.audit).union(range(max(start.processes for start in self._starts)))
        self._files = {
            rank: RankFile(run.audit / f"rank-{rank}.jsonl", self._starts[-1].number + 1, gone_back, self._problem)
            for rank in sorted(ranks)
        }
        self._epoch = (-1, -1)
        self._consumed = bytearray()
        """Hashes of what came in `_epoch` (stage, epoch), in the steps that count."""
        self._epochs = self._steps = self._repeated = self._replaced = 0

    def prove(self) -> str:
        """What was proved, in numbers. Raises UserError with what broke."""
        for index, start in enumerate(self._starts):
            self._go_through(start, self._starts[index + 1 :])
        for file in self._files.values():
            self._require_end(file)
        steps, total = self._status.get("global_step"), self._plan.total_steps
        if self._status.get("state") == "done" and steps != total:
            self._problem(f"{self._run.status}: done after {steps} steps, but the configuration makes {total}")
        if self._problems:
            more = [f"and {self._unnamed} more"] if self._unnamed else []
            lines = "\n".join(f"  {line}" for line in self._problems + more)
            raise UserError(f"{self._run.path}: what was consumed is not what the order asks for:\n{lines}")
        return self._text()

    def _go_through(self, start: RunStart, later: Sequence[RunStart]) -> None:
        """All that a start consumed. Its steps count up to where a later one goes on."""
        kept = min((other.global_step for other in later), default=math.inf)
        reached = self._follow(start, kept)
        if later:
            self._require_steps(start, reached, later[0].global_step, f"{later[0].place}: start {later[0].number}")
            self._repeated += int(max(max(reached) - max(kept, start.global_step), 0))
        else:
            if self._status.get("state") in ("done", "preempted"):  # else what it says may be beyond what counts
                self._require_steps(start, reached, self._status["global_step"], f"{self._run.status}: the run")
            self._steps = min(reached)

    def _follow(self, start: RunStart, kept: float) -> list[int]:
        """Check the lines of a start; for each of its processes, the global steps that are behind it."""
        files = [self._files[rank] for rank in range(start.processes)]
        reached = [start.global_step] * start.processes
        position = start.position
        while position.stage < len(self._plan.stages):
            stage = self._plan.stages[position.stage]
            before = self._plan.steps_before(Position(position.stage, position.epoch))
            order = stage.order(position.epoch)
            part = Part(start, stage, position.epoch, position.step, kept - before, order)
            if part.first < part.kept and self._epoch != (position.stage, position.epoch):
                self._epoch, self._consumed = (position.stage, position.epoch), bytearray()
            for rank, file in enumerate(files):
                step = self._follow_epoch(part, rank, file)
                if step > part.first:
                    reached[rank] = before + step
            if start.global_step < before + part.steps <= min(kept, *reached):
                self._require_once(part)
            if not any(file.line and file.line.start == start.number for file in files):
                break
            position = position.next_epoch() if position.epoch + 1 < stage.epochs else position.next_stage()
        return reached

    def _follow_epoch(self, part: Part, rank: int, file: RankFile) -> int:
        """Check the lines of one process; the steps of the epoch that are behind it."""
        step = part.first
        here = (part.start.number, part.stage.number, part.epoch)
        while (line := file.line) and line.epoch_of_start <= here:
            if line.epoch_of_start == here and step <= line.step < part.steps:
                self._require_lines(part, file, range(step, line.step))
                self._check(part, rank, file, line)
                step = line.step + 1
            else:
                self._problem(f"{file.place}: out of place; expected {part}, step {step} of {part.steps}")
            file.advance()
        if file.line and file.line.start == part.start.number:
            self._require_lines(part, file, range(step, part.steps))
            return part.steps
        return step

    def _check(self, part: Part, rank: int, file: RankFile, line: AuditLine) -> None:
        """The rows of one global batch, as one process consumed them, against the order."""
        if line.processes != part.start.processes:
            self._problem(f"{file.place}: says {line.processes} processes, but there were {part.start.processes}")
        rows = rows_of_rank(part.stage.batch, rank, part.start.processes)
        refs = part.order.batch(line.step, rows)
        expected, found = self._samples.hashes_at(refs), hash_keys(line.keys)
        if len(found) == len(expected):
            found = self._put_back(part, file, line, expected, found)
            self._require_order(file, line, rows, refs, np.flatnonzero(found != expected))
        else:
            self._problem(f"{file.place}: {len(found)} keys, expected the {len(rows)} of rows {rows[0]} to {rows[-1]}")
        if line.step < part.kept:
            self._consumed += found.tobytes()
            self._replaced += len(line.replaced)

    def _put_back(self, part: Part, file: RankFile, line: AuditLine, expected: Hashes, found: Hashes) -> Hashes:
        """`found` with the samples that were replaced, in the place of those that were used for them."""
        if not line.replaced:
            return found
        originals = found.copy()
        batch = self._samples.hashes_at(part.order.batch(line.step))
        for bad, used in line.replaced.items():
            bad_hash, used_hash = hash_keys([bad, used])
            rows = (expected == bad_hash) & (found == used_hash)
            originals[rows] = bad_hash
            if not rows.any() or used_hash not in batch:
                self._problem(f"{file.place}: {bad!r} is not of its rows, or {used!r} not of the same global batch")
        return originals

    def _require_order(self, file: RankFile, line: AuditLine, rows: range, refs: SampleRefs, wrong: Places) -> None:
        if len(wrong) and len(self._problems) == MOST_PROBLEMS:  # spares reading an index for the name
            self._unnamed += 1
        elif len(wrong):
            row = int(wrong[0])
            others = f", and {len(wrong) - 1} rows more" if len(wrong) > 1 else ""
            self._problem(
                f"{file.place}: row {rows[row]} of the global batch: expected {self._samples.key_at(refs, row)!r}, "
                f"found {line.keys[row]!r}{others}"
            )

    def _require_once(self, part: Part) -> None:
        """All samples of an epoch whose steps count, whatever the order says of them."""
        self._epochs += 1
        subset = self._samples.hashes[: sum(part.stage.shard_lengths)]
        keys, copies = np.unique(subset, return_counts=True)  # shards of others may have a key more than once
        seen, times = np.unique(np.frombuffer(bytes(self._consumed), subset.dtype), return_counts=True)
        place = np.minimum(np.searchsorted(keys, seen), len(keys) - 1)
        known = keys[place] == seen
        often = seen[known & (times > copies[place])]
        what = f"stage {part.stage.number}, epoch {part.epoch}"
        if len(often):
            self._problem(f"{what}: {len(often)} sample(s) came more than once: {self._samples.names(often)}")
        if not known.all():
            self._problem(f"{what}: {(~known).sum()} sample(s) came that are not of the stage's {len(subset)}")
        expected = part.steps * part.stage.batch
        if times.sum() != expected:
            self._problem(
                f"{what}: {times.sum()} samples came, expected {expected} of {len(subset)} in batches of "
                f"{part.stage.batch}"
            )

    def _require_lines(self, part: Part, file: RankFile, steps: range) -> None:
        if steps:
            self._problem(f"{file.place}: before it, {part}, steps {steps[0]} to {steps[-1]} are missing")

    def _require_steps(self, start: RunStart, reached: list[int], goal: int, who: str) -> None:
        """No hole: every process has consumed all steps up to `goal`, at which `who` stands."""
        farthest = max(reached)
        if farthest < goal:
            unheard = "; was it without --audit?" if farthest == start.global_step else ""
            self._problem(
                f"{who} stands at {self._say(goal)}, but no process of start {start.number} consumed any step from "
                f"{self._say(farthest)} on{unheard}"
            )
        for rank, steps in enumerate(reached):
            if steps < min(goal, farthest):
                self._problem(
                    f"{self._files[rank].path}: start {start.number} has no line of {self._say(steps)} or later, but "
                    f"another process has, and {who} stands at {self._say(goal)}"
                )

    def _require_end(self, file: RankFile) -> None:
        if file.line:
            self._problem(
                f"{file.place}: belongs to no start that {self._run.events.name} tells of, or lies beyond the end of "
                "the run; so may lines after it"
            )

    def _problem(self, text: str) -> None:
        if len(self._problems) < MOST_PROBLEMS:
            self._problems.append(text)
        else:
            self._unnamed += 1

    def _say(self, global_step: int) -> str:
        position = _position(self._plan, global_step)
        return f"stage {position.stage}, epoch {position.epoch}, step {position.step} (global step {global_step})"

    def _text(self) -> str:
        state = self._status.get("state", "of unknown state")
        epochs = sum(stage.epochs for stage in self._plan.stages)
        torn = self._torn_events + sum(file.torn for file in self._files.values())
        samples = self._plan.samples_before(_position(self._plan, self._steps))
        processes = ", ".join(str(start.processes) for start in self._starts)
        rows = {
            "run": state if state == "done" else f"{state}, not done: what there is of it was audited",
            "starts": f"{len(self._starts)}, with {processes} process(es)",
            "order": f"{self._steps:,} of {self._plan.total_steps:,} steps, {samples:,} samples: as the order asks for",
            "once": f"{self._epochs} of {epochs} epochs whole: each sample once, but for those that fill no batch",
            "repeated": f"{self._repeated:,} steps done again after a start, as the order asks for",
            "replaced": f"{self._replaced:,} samples, each by another one of its global batch",
            "torn": f"{torn:,} lines that a kill cut off, passed over",
        }
        return "\n".join(
            [
                f"{self._run.path}: the order held, and no sample came twice in an epoch",
                *(f"  {name:<10}{row}" for name, row in rows.items()),
            ]
        )


def _position(plan: RunPlan, global_step: int) -> Position:
    """Where a run stands that has done `global_step` steps."""
    for stage in plan.stages:
        if global_step < stage.total_steps:
            return Position(stage.number, *divmod(global_step, stage.steps))
        global_step -= stage.total_steps
    return plan.end
