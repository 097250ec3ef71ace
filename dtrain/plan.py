"""What a run will do, worked out before it starts: pure arithmetic on the configuration and the manifest."""

import math
from dataclasses import dataclass

from dtrain.config import Config, ScheduleConfig
from dtrain.data.order import EpochOrder, Position, rows_of_rank, subset_lengths
from shard_tools.errors import UserError
from shard_tools.manifest import Manifest


@dataclass(frozen=True)
class StagePlan:
    """One stage, cut for this number of processes."""

    number: int
    size: int
    batch: int
    epochs: int
    steps: int
    """Global batches in an epoch."""
    dropped: int
    """Samples that don't fill a batch, in each epoch."""
    learning_rate: float
    shard_lengths: tuple[int, ...]
    rows: range
    """The rows of every global batch that are this process's."""
    micro_batch: int

    @property
    def accumulation(self) -> int:
        """Micro-batches in a step."""
        return len(self.rows) // self.micro_batch

    def micro_rows(self) -> list[range]:
        """The rows of this process, one range for each micro-batch."""
        start, stop = self.rows.start, self.rows.stop
        return [range(row, row + self.micro_batch) for row in range(start, stop, self.micro_batch)]


@dataclass(frozen=True)
class RunPlan:
    """All stages, and how far into the run any position is."""

    stages: tuple[StagePlan, ...]

    @property
    def total_steps(self) -> int:
        return sum(stage.steps * stage.epochs for stage in self.stages)

    @property
    def total_samples(self) -> int:
        return sum(stage.steps * stage.epochs * stage.batch for stage in self.stages)

    def steps_before(self, position: Position) -> int:
        """Global steps of the whole run that lie behind `position`."""
        done = sum(stage.steps * stage.epochs for stage in self.stages[: position.stage])
        if position.stage == len(self.stages):
            return done
        return done + position.epoch * self.stages[position.stage].steps + position.step

    def samples_before(self, position: Position) -> int:
        """Samples trained on before `position`."""
        done = sum(stage.steps * stage.epochs * stage.batch for stage in self.stages[: position.stage])
        if position.stage == len(self.stages):
            return done
        stage = self.stages[position.stage]
        return done + (position.epoch * stage.steps + position.step) * stage.batch


def plan_run(config: Config, manifest: Manifest, *, rank: int, world_size: int) -> RunPlan:
    """Cut every stage for process `rank` of `world_size`.

    Raises UserError that names the key when a stage can't be run: too few samples, or a batch that can't be cut.
    """
    lengths = [shard.samples for shard in manifest.split(config.data.train_split).shards]
    stages = []
    for number, stage in enumerate(config.stages):
        try:
            subset = subset_lengths(lengths, stage.samples)
            order = EpochOrder(subset, seed=config.seed, stage=number, epoch=0, global_batch=stage.batch)
            rows = rows_of_rank(stage.batch, rank, world_size)
        except UserError as error:
            raise UserError(f"stages.{number}.{error}") from None
        stages.append(
            StagePlan(
                number=number,
                size=stage.size,
                batch=stage.batch,
                epochs=stage.epochs,
                steps=order.steps,
                dropped=order.dropped,
                learning_rate=stage.learning_rate or config.optimizer.learning_rate,
                shard_lengths=tuple(subset),
                rows=rows,
                micro_batch=micro_batch(len(rows), config.max_micro_batch),
            )
        )
    return RunPlan(tuple(stages))


def micro_batch(share: int, largest: int) -> int:
    """The largest divisor of a process's `share` of the batch that is at most `largest`."""
    return next(size for size in range(min(share, largest), 0, -1) if share % size == 0)


def learning_rate_factor(schedule: ScheduleConfig, samples: int, total_samples: int) -> float:
    """The factor in [0, 1] on the learning rate after `samples` of `total_samples`, for the step that follows."""
    if samples < schedule.warmup_samples:
        return (samples + 1) / (schedule.warmup_samples + 1)
    if schedule.name == "constant":
        return 1.0
    span = max(total_samples - schedule.warmup_samples, 1)
    return 0.5 * (1 + math.cos(math.pi * (samples - schedule.warmup_samples) / span))
