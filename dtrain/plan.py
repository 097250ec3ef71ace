"""What a run will do, worked out before it starts: pure arithmetic on the configuration and the shards' lengths."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dtrain.config import Config, ScheduleConfig
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
    steps: int
    """Global batches in an epoch."""
    dropped: int
    """Samples that don't fill a batch, in each epoch."""
    learning_rate: float
    shard_lengths: tuple[int, ...]
    rows: range
    """The rows of every global batch that are this process's."""
    micro_rows: tuple[range, ...]
    """The same rows, cut into as few nearly equal micro-batches as the largest allowed one permits."""

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

    def holds(self, position: Position) -> bool:
        """Whether the run has such a position; after its end there is one more."""
        if position.stage >= len(self.stages):
            return position == self.end
        stage = self.stages[position.stage]
        if position.epoch >= stage.epochs:
            return (position.epoch, position.step) == (stage.epochs, 0)
        return position.step <= stage.steps

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
            yield stage, stage.steps * stage.epochs
        if position.stage < len(self.stages):
            stage = self.stages[position.stage]
            yield stage, position.epoch * stage.steps + position.step


def plan_run(config: Config, shard_lengths: Sequence[int], *, rank: int, world_size: int) -> RunPlan:
    """Cut every stage for process `rank` of `world_size`; `shard_lengths` are the samples per shard to train on.

    Raises UserError that names the key when a stage can't be run: too few samples, or a batch that can't be cut.
    """
    stages = []
    for number, stage in enumerate(config.stages):
        try:
            subset = subset_lengths(shard_lengths, stage.samples)
            steps, dropped = steps_of_epoch(sum(subset), stage.batch)
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
                epochs=stage.epochs,
                steps=steps,
                dropped=dropped,
                learning_rate=stage.learning_rate or config.optimizer.learning_rate,
                shard_lengths=tuple(subset),
                rows=rows,
                micro_rows=micro_rows,
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


def learning_rate_factor(schedule: ScheduleConfig, samples: int, total_samples: int) -> float:
    """The factor in [0, 1] on the learning rate after `samples` of `total_samples`, for the step that follows."""
    if samples < schedule.warmup_samples:
        return (samples + 1) / (schedule.warmup_samples + 1)
    if schedule.name == "constant":
        return 1.0
    span = max(total_samples - schedule.warmup_samples, 1)
    return 0.5 * (1 + math.cos(math.pi * (samples - schedule.warmup_samples) / span))
