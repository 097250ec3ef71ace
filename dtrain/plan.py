"""What a run will do, worked out before it starts: pure arithmetic on the configuration and the shards' lengths."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dtrain.config import Config, ScheduleConfig, StageConfig
from dtrain.data.order import EpochOrder, Position, cut, rows_of_rank, steps_of_epoch, subset_lengths
from shard_tools.errors import UserError


@dataclass(frozen=True)
class StagePlan:
    """One stage, cut for this number of processes."""

    number: int
    seed: int
    size: int
    batch: int
    max_lanes: int
    epochs: int
    """The last one may be cut short."""
    steps: int
    """Global batches in a whole epoch."""
    total_steps: int
    """Global batches in the stage."""
    dropped: int
    """Samples that don't fill a batch, in each epoch."""
    learning_rate: float
    shard_lengths: tuple[int, ...]
    rows: range
    """The rows of every global batch that are this process's."""
    micro_rows: tuple[range, ...]
    """The same rows, cut into as few nearly equal micro-batches as the largest allowed one permits."""
    loss_size: int | None
    """To which predictions are interpolated for the loss."""
    resets_optimizer: bool
    """Whether the optimizer's state begins anew."""

    def order(self, epoch: int) -> EpochOrder:
        """The order of samples in an epoch of this stage: the same for every process."""
        return EpochOrder(
            self.shard_lengths,
            seed=self.seed,
            stage=self.number,
            epoch=epoch,
            global_batch=self.batch,
            max_lanes=self.max_lanes,
        )

    @property
    def decoded_size(self) -> int:
        """Side of the images that are read: the network's or, for a loss at a larger size, that one."""
        return max(self.size, self.loss_size or 0)

    def steps_of(self, epoch: int) -> int:
        """Global batches in an epoch of this stage."""
        return min(self.steps, self.total_steps - epoch * self.steps)

    def weight(self, micro_batch: int, world_size: int) -> float:
        """What the mean loss of a micro-batch of this size counts in a step.

        DDP averages over processes; with these weights the average of the sums is the mean over the global batch,
        however unevenly it is cut.
        """
        return micro_batch * world_size / self.batch


@dataclass(frozen=True)
class RunPlan:
    """All stages, and how far into the run any position is."""

    stages: tuple[StagePlan, ...]

    @property
    def end(self) -> Position:
        return Position(len(self.stages), 0, 0)

    @property
    def total_steps(self) -> int:
        return self.steps_before(self.end)

    @property
    def total_samples(self) -> int:
        return self.samples_before(self.end)

    @property
    def total_pixels(self) -> int:
        return self.pixels_before(self.end)

    def stage_ends(self) -> dict[int, int]:
        """The global step after which each stage ends, by its number."""
        return {stage.number: self.steps_before(Position(stage.number + 1, 0, 0)) for stage in self.stages}

    def holds(self, position: Position) -> bool:
        """Whether the run has such a position; after its end there is one more."""
        if position.stage >= len(self.stages):
            return position == self.end
        stage = self.stages[position.stage]
        if position.epoch >= stage.epochs:
            return (position.epoch, position.step) == (stage.epochs, 0)
        return position.step <= stage.steps_of(position.epoch)

    def steps_before(self, position: Position) -> int:
        """Global steps of the whole run that lie behind `position`."""
        return sum(steps for _, steps in self._done(position))

    def samples_before(self, position: Position) -> int:
        """Samples trained on before `position`."""
        return sum(stage.batch * steps for stage, steps in self._done(position))

    def pixels_before(self, position: Position) -> int:
        """Pixels of those samples' images, to which the time they took is about proportional."""
        return sum(stage.size**2 * stage.batch * steps for stage, steps in self._done(position))

    def _done(self, position: Position) -> Iterator[tuple[StagePlan, int]]:
        """Each stage that was begun before `position`, and how many of its steps lie behind it."""
        for stage in self.stages[: position.stage]:
            yield stage, stage.total_steps
        if position.stage < len(self.stages):
            stage = self.stages[position.stage]
            yield stage, min(position.epoch * stage.steps + position.step, stage.total_steps)

    def learning_rate(self, schedule: ScheduleConfig, position: Position) -> float:
        """That of the step that begins at `position`."""
        stage = self.stages[position.stage]
        samples, total = self.samples_before(position), self.total_samples
        if schedule.span == "stage":
            samples -= self.samples_before(Position(position.stage, 0, 0))
            total = stage.total_steps * stage.batch
        return stage.learning_rate * learning_rate_factor(schedule, samples, total)


def plan_run(config: Config, shard_lengths: Sequence[int], *, rank: int, world_size: int) -> RunPlan:
    """Cut every stage for process `rank` of `world_size`; `shard_lengths` are the samples per shard to train on.

    Raises UserError that names the key when a stage can't be run: too few samples, or a batch that can't be cut.
    """
    stages = []
    for number, stage in enumerate(config.stages):
        try:
            subset = subset_lengths(shard_lengths, stage.samples)
            steps, dropped = steps_of_epoch(sum(subset), stage.batch)
            total_steps = _total_steps(stage, steps)
            rows = rows_of_rank(stage.batch, rank, world_size)
            micro_rows = _micro_rows(rows, config.max_micro_batch)
            if config.sync_batch_norm:
                micro_rows = _equally_many(rows, stage.batch, world_size, config.max_micro_batch)
        except UserError as error:
            raise UserError(f"stages.{number}.{error}") from None
        stages.append(
            StagePlan(
                number=number,
                seed=config.seed + stage.seed_offset,
                size=stage.size,
                batch=stage.batch,
                max_lanes=config.data.max_lanes,
                epochs=math.ceil(total_steps / steps),
                steps=steps,
                total_steps=total_steps,
                dropped=dropped,
                learning_rate=stage.learning_rate or config.optimizer.learning_rate,
                shard_lengths=tuple(subset),
                rows=rows,
                micro_rows=micro_rows,
                loss_size=stage.loss_size,
                resets_optimizer=stage.optimizer_state == "reset",
            )
        )
    return RunPlan(tuple(stages))


def _micro_rows(rows: range, largest: int) -> tuple[range, ...]:
    return tuple(rows[part.start : part.stop] for part in cut(len(rows), math.ceil(len(rows) / largest)))


def _equally_many(rows: range, batch: int, world_size: int, largest: int) -> tuple[range, ...]:
    """Micro-batches, as many as every other process has: SyncBatchNorm exchanges in each forward pass."""
    count = math.ceil(math.ceil(batch / world_size) / largest)
    if count > len(rows):
        raise UserError(
            f"batch: {batch} samples on {world_size} processes in micro-batches of {largest} are not equally many on "
            "all, which sync_batch_norm needs; raise max_micro_batch"
        )
    return tuple(rows[part.start : part.stop] for part in cut(len(rows), count))


def _total_steps(stage: StageConfig, steps: int) -> int:
    """Global batches in a stage, whose epochs have `steps`."""
    if stage.steps is not None:
        return stage.steps
    if stage.seen_samples is not None:
        return math.ceil(stage.seen_samples / stage.batch)
    assert stage.epochs is not None, "or the configuration is not valid"
    return stage.epochs * steps


ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1e-5
"""Learning rates at the ends of one cycle, relative to its peak; torch's defaults are a little lower at the end."""


def learning_rate_factor(schedule: ScheduleConfig, samples: int, total_samples: int) -> float:
    """The factor in [0, 1] on the learning rate after `samples` of `total_samples`, for the step that follows.

    one_cycle: Smith and Topin 2019 (https://arxiv.org/abs/1708.07120), both ways along a cosine.
    """
    if samples < schedule.warmup_samples:
        return (samples + 1) / (schedule.warmup_samples + 1)
    match schedule.name:
        case "constant":
            return 1.0
        case "step":
            assert schedule.step_samples is not None, "or the configuration is not valid"
            return schedule.step_factor ** (samples // schedule.step_samples)
        case "one_cycle":
            peak = schedule.peak * total_samples
            if samples < peak:
                return _along_cosine(ONE_CYCLE_START, 1.0, samples / peak)
            return _along_cosine(1.0, ONE_CYCLE_END, (samples - peak) / max(total_samples - peak, 1))
        case "cosine":
            span = max(total_samples - schedule.warmup_samples, 1)
            return _along_cosine(1.0, 0.0, (samples - schedule.warmup_samples) / span)


def _along_cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * share))
