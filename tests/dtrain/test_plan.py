"""The plan: how batches are cut, how much there is to do, and the learning rate."""

from collections.abc import Callable

import pytest
import torch

from dtrain.config import Config, ScheduleConfig
from dtrain.data.order import Position
from dtrain.plan import learning_rate_factor, plan_run
from shard_tools.errors import UserError

from .conftest import Shards

MakeConfig = Callable[..., Config]


@pytest.mark.parametrize(
    ("batch", "largest", "sizes"),
    [
        (24, 1024, [24]),
        (24, 24, [24]),
        (24, 23, [12, 12]),
        (24, 10, [8, 8, 8]),
        (25, 10, [8, 8, 9]),
        (12, 5, [4, 4, 4]),
        (7, 6, [3, 4]),
        (7, 1, [1] * 7),
    ],
)
def test_a_share_is_cut_into_as_few_micro_batches_as_fit(
    make_config: MakeConfig, shards: Shards, batch: int, largest: int, sizes: list[int]
) -> None:
    config = make_config(f"--max_micro_batch={largest}", f"--stages.0.batch={batch}")
    stage = plan_run(config, shards.lengths(), rank=0, world_size=1).stages[0]
    assert sorted(map(len, stage.micro_rows)) == sizes
    assert sum(stage.weight(size, 1) for size in sizes) == pytest.approx(1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("largest", [1, 2, 1000])
def test_processes_and_micro_batches_cut_the_batch_into_parts(
    make_config: MakeConfig, shards: Shards, world_size: int, largest: int
) -> None:
    config = make_config(f"--max_micro_batch={largest}", "--stages.1.batch=12")
    seen: list[list[int]] = [[], []]
    weights = [0.0, 0.0]
    for rank in range(world_size):
        plan = plan_run(config, shards.lengths(), rank=rank, world_size=world_size)
        for stage, rows in zip(plan.stages, seen, strict=True):
            assert all(0 < len(part) <= largest for part in stage.micro_rows)
            assert [row for part in stage.micro_rows for row in part] == list(stage.rows)
            weights[stage.number] += sum(stage.weight(len(part), world_size) for part in stage.micro_rows)
            rows.extend(stage.rows)
    assert seen == [list(range(6)), list(range(12))]
    assert weights == pytest.approx([world_size, world_size]), "DDP divides by the number of processes"


def test_totals_and_what_lies_behind_a_position(make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--stages.1.batch=8", "--stages.1.samples=17")
    plan = plan_run(config, shards.lengths(), rank=0, world_size=2)

    first, second = plan.stages
    assert (first.steps, first.dropped, first.epochs) == (30 // 6, 0, 2)
    assert (second.steps, second.dropped, second.epochs) == (17 // 8, 1, 1)
    assert sum(second.shard_lengths) == 17
    assert plan.total_steps == 2 * 5 + 2
    assert plan.total_samples == 2 * 30 + 16

    expected = [
        (Position(0, 0, 0), 0, 0),
        (Position(0, 0, 3), 3, 18),
        (Position(0, 0, 5), 5, 30),
        (Position(0, 1, 0), 5, 30),
        (Position(0, 1, 4), 9, 54),
        (Position(0, 2, 0), 10, 60),
        (Position(1, 0, 0), 10, 60),
        (Position(1, 0, 1), 11, 68),
        (Position(1, 1, 0), 12, 76),
        (Position(2, 0, 0), 12, 76),
    ]
    assert [(p, plan.steps_before(p), plan.samples_before(p)) for p, _, _ in expected] == expected


def test_a_stage_may_have_its_own_learning_rate(make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--optimizer.learning_rate=0.5", "--stages.1.learning_rate=0.25")
    plan = plan_run(config, shards.lengths(), rank=0, world_size=1)
    assert [stage.learning_rate for stage in plan.stages] == [0.5, 0.25]


def test_a_stage_may_be_as_long_as_so_many_steps_or_samples(make_config: MakeConfig, shards: Shards) -> None:
    """30 samples are 5 steps of 6, and 7 of 4."""
    config = make_config(
        *("--stages.0.epochs=null", "--stages.0.steps=12", "--stages.1.epochs=null", "--stages.1.seen_samples=41")
    )
    plan = plan_run(config, shards.lengths(), rank=0, world_size=1)
    assert [(stage.epochs, stage.total_steps) for stage in plan.stages] == [(3, 12), (2, 11)]
    assert [plan.stages[0].steps_of(epoch) for epoch in range(3)] == [5, 5, 2]
    assert plan.stage_ends() == {0: 12, 1: 23}
    assert (plan.total_steps, plan.total_samples) == (23, 12 * 6 + 11 * 4)
    ends = [Position(0, 2, 2), Position(0, 3, 0), Position(1, 0, 0)]
    assert [plan.steps_before(position) for position in ends] == [12, 12, 12]
    assert [plan.holds(Position(0, 2, step)) for step in (2, 3)] == [True, False]


def test_a_schedule_spans_the_run_or_each_stage(make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--stages.1.learning_rate=0.25", "--optimizer.learning_rate=1")
    plan = plan_run(config, shards.lengths(), rank=0, world_size=1)
    total = plan.total_samples
    begins, half = Position(1, 0, 0), Position(0, 1, 0)
    run, stage = ScheduleConfig(), ScheduleConfig(span="stage")
    seen = plan.samples_before(begins)
    assert plan.learning_rate(run, begins) == 0.25 * learning_rate_factor(run, seen, total)
    assert plan.learning_rate(stage, begins) == 0.25
    assert plan.learning_rate(stage, half) == pytest.approx(0.5), "of the two epochs of the first stage, one is over"


@pytest.mark.parametrize(
    ("override", "world_size", "expected"),
    [
        ("--stages.1.batch=31", 1, r"^stages\.1\.batch: .* 31 .* 30 samples; use a batch of 30 or less"),
        ("--stages.0.batch=2", 3, r"^stages\.0\.batch: .* 2 .* 3 processes, .* at most 2 processes, or .* 3 or more"),
        ("--stages.1.samples=31", 1, r"^stages\.1\.samples: 31 asked for, but the split holds 30"),
        ("--stages.0.samples=5", 1, r"^stages\.0\.batch: .* 6 can't be filled from 5 samples"),
        ("--data.train_split=dev", 1, r"no split 'dev'; it has: train, test"),
    ],
)
def test_a_stage_that_cannot_be_run_is_named(
    make_config: MakeConfig, shards: Shards, override: str, world_size: int, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        config = make_config(override)
        plan_run(config, shards.lengths(config.data.train_split), rank=0, world_size=world_size)


def test_constant_learning_rate() -> None:
    schedule = ScheduleConfig(name="constant")
    assert [learning_rate_factor(schedule, samples, 1000) for samples in (0, 500, 1000)] == [1.0, 1.0, 1.0]


def test_cosine_falls_from_one_over_a_half_to_zero() -> None:
    schedule = ScheduleConfig(name="cosine")
    factors = [learning_rate_factor(schedule, samples, 1000) for samples in (0, 250, 500, 750, 1000)]
    assert factors == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_steps_fall_by_a_factor_after_each_so_many_samples() -> None:
    schedule = ScheduleConfig(name="step", step_samples=300, step_factor=0.5)
    factors = [learning_rate_factor(schedule, samples, 1000) for samples in (0, 299, 300, 599, 600, 999)]
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]


def test_one_cycle_is_torchs() -> None:
    """Torch's takes steps for samples, and falls to 4e-6 of the peak instead of 1e-5."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=1001, pct_start=0.3, div_factor=25, final_div_factor=1e5 / 25, cycle_momentum=False
    )
    expected = []
    for _ in range(1001):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    schedule = ScheduleConfig(name="one_cycle", peak=0.3)
    factors = [learning_rate_factor(schedule, samples, 1000) for samples in range(1001)]
    assert factors == pytest.approx(expected, abs=0.006), "whose peak is one step before ours"
    assert max(factors) == factors[300] == 1.0


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_warm_up_rises_in_samples_and_is_never_zero(name: str) -> None:
    schedule = ScheduleConfig.model_validate({"name": name, "warmup_samples": 99})
    factors = [learning_rate_factor(schedule, samples, 1099) for samples in (0, 49, 98, 99)]
    assert factors == pytest.approx([0.01, 0.5, 0.99, 1.0])


def test_cosine_spans_what_follows_the_warm_up() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_samples=100)
    factors = [learning_rate_factor(schedule, samples, 1100) for samples in (100, 600, 1100)]
    assert factors == pytest.approx([1.0, 0.5, 0.0], abs=1e-9)


@pytest.mark.parametrize("total", [50, 100])
def test_a_warm_up_longer_than_the_run_only_rises(total: int) -> None:
    schedule = ScheduleConfig(name="cosine", warmup_samples=100)
    factors = [learning_rate_factor(schedule, samples, total) for samples in range(0, total, 10)]
    assert factors == sorted(factors)
    assert 0 < factors[0] < factors[-1] < 1


def test_the_order_of_a_stage_takes_its_own_seed_and_lanes(make_config: MakeConfig, shards: Shards) -> None:
    def first_samples(*overrides: str) -> list[int]:
        plan = plan_run(make_config(*overrides), shards.lengths(), rank=0, world_size=1)
        return [int(sample) for sample in plan.stages[0].order(epoch=1).batch(0).sample]

    usual = first_samples()
    assert usual == first_samples("--stages.1.seed_offset=1")
    assert usual != first_samples("--stages.0.seed_offset=1") == first_samples("--seed=1")
    assert usual != first_samples("--data.max_lanes=2")
