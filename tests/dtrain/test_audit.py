"""The audit of runs: what it proves of good ones, and that whatever breaks order or once is named."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtrain.audit import audit_run
from dtrain.config import Config
from dtrain.data.order import Position, rows_of_rank
from dtrain.plan import RunPlan, plan_run
from dtrain.run_folder import RunFolder, State
from shard_tools.errors import UserError
from shard_tools.manifest import open_shards
from shard_tools.samples import read_index

from .conftest import Shards

MakeConfig = Callable[..., Config]
Line = dict[str, Any]


class Run:
    """A run folder as trainings would leave it: 2 epochs of 5 steps with batch 6, then 1 of 7 steps with batch 4."""

    def __init__(self, config: Config) -> None:
        storage, manifest = open_shards(config.data.manifest)
        shards = manifest.split("train").shards
        self.digest = manifest.digest()
        self.folder = RunFolder(config.run)
        self.folder.audit.mkdir(parents=True)
        self.folder.config.write_text(config.to_yaml(), encoding="utf-8")
        self.plan: RunPlan = plan_run(config, [shard.samples for shard in shards], rank=0, world_size=1)
        self.keys = [[sample.key for sample in read_index(storage, shard)] for shard in shards]
        self.positions = [
            Position(stage.number, epoch, step)
            for stage in self.plan.stages
            for epoch in range(stage.epochs)
            for step in range(stage.steps)
        ]
        self.starts = 0

    def rank(self, number: int) -> Path:
        return self.folder.audit / f"rank-{number}.jsonl"

    def consume(self, processes: int, steps: range, *, beyond: dict[int, int] | None = None) -> "Run":
        """A start that consumes these global steps; some processes `beyond` them by some steps more."""
        first = self.positions[steps.start] if steps.start < len(self.positions) else Position(0, 1, 5)
        details = {"start": self.starts, "processes": processes, "data": self.digest}
        if self.starts == 0:
            self.folder.add_event("start", 0, **details)
        else:
            place = {"stage": first.stage, "epoch": first.epoch, "step": first.step}
            self.folder.add_event("resume", steps.start, **place, **details)
        for rank in range(processes):
            stop = steps.stop + (beyond or {}).get(rank, 0)
            with self.rank(rank).open("a") as file:
                for global_step in range(steps.start, stop):
                    file.write(json.dumps(self.line(global_step, rank, processes)) + "\n")
        self.starts += 1
        return self

    def line(self, global_step: int, rank: int, processes: int) -> Line:
        position = self.positions[global_step]
        return {
            "start": self.starts,
            "processes": processes,
            "stage": position.stage,
            "epoch": position.epoch,
            "step": position.step,
            "keys": self.row_keys(global_step, rank, processes),
        }

    def row_keys(self, global_step: int, rank: int = 0, processes: int = 1) -> list[str]:
        position = self.positions[global_step]
        stage = self.plan.stages[position.stage]
        order = stage.order(position.epoch)
        refs = order.batch(position.step, rows_of_rank(stage.batch, rank, processes))
        return [self.keys[shard][sample] for shard, sample in zip(refs.shard, refs.sample, strict=True)]

    def end(self, state: State = "done", global_step: int = 17) -> "Run":
        self.folder.write_status(state, "", global_step)
        return self

    def edit(self, rank: int, number: int, change: Callable[[Line], object]) -> None:
        """Change a line (counted from 1) of a rank's file."""
        lines = self.rank(rank).read_text().splitlines()
        line = json.loads(lines[number - 1])
        change(line)
        lines[number - 1] = json.dumps(line)
        self.rank(rank).write_text("\n".join(lines) + "\n")

    def remove(self, rank: int, *numbers: int) -> None:
        lines = self.rank(rank).read_text().splitlines()
        kept = [line for number, line in enumerate(lines, start=1) if number not in numbers]
        self.rank(rank).write_text("\n".join(kept) + "\n")

    def facts(self) -> dict[str, str]:
        """The lines of a proof by their first word."""
        first, *rest = audit_run(self.folder.path).splitlines()
        assert str(self.folder.path) in first
        return {name: text.strip() for name, _, text in (line.strip().partition(" ") for line in rest)}

    def problems(self) -> list[str]:
        """What the audit names."""
        with pytest.raises(UserError) as caught:
            audit_run(self.folder.path)
        first, *rest = str(caught.value).splitlines()
        assert first.startswith(f"{self.folder.path}: ")
        return [line.strip() for line in rest]


@pytest.fixture
def run(make_config: MakeConfig) -> Run:
    return Run(make_config())


def swap(line: Line, row: int, key: str) -> str:
    old: str = line["keys"][row]
    line["keys"][row] = key
    return old


def test_an_undisturbed_run_is_proved_in_numbers(run: Run) -> None:
    facts = run.consume(2, range(17)).end().facts()
    assert facts["run"] == "done"
    assert facts["starts"] == "1, with 2 process(es)"
    assert facts["order"].startswith("17 of 17 steps, 88 samples")
    assert facts["once"].startswith("3 of 3 epochs")
    assert facts["repeated"].startswith("0 steps")
    assert facts["replaced"].startswith("0 samples")
    assert facts["torn"].startswith("0 lines")


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_any_number_of_processes_consumes_the_same(run: Run, processes: int) -> None:
    facts = run.consume(processes, range(17)).end().facts()
    assert facts["order"].startswith("17 of 17 steps, 88 samples")


def test_a_run_that_was_killed_and_went_on_with_other_numbers_of_processes(run: Run) -> None:
    run.consume(3, range(7), beyond={0: 3, 1: 2, 2: 2})  # steps 7 and 8 of all, step 9 of one
    run.consume(1, range(7, 11), beyond={0: 1})
    run.consume(4, range(11, 17)).end()
    facts = run.facts()
    assert facts["starts"] == "3, with 3, 1, 4 process(es)"
    assert facts["order"].startswith("17 of 17 steps, 88 samples")
    assert facts["once"].startswith("3 of 3 epochs")
    assert facts["repeated"].startswith("4 steps")


def test_a_run_may_go_back_behind_an_earlier_start(run: Run) -> None:
    """Checkpoints of steps 10 and 8 turned out to be damaged."""
    run.consume(2, range(10), beyond={0: 1, 1: 1}).consume(2, range(10, 13)).consume(1, range(3, 17)).end()
    facts = run.facts()
    assert facts["order"].startswith("17 of 17 steps")
    assert facts["once"].startswith("3 of 3 epochs")
    assert facts["repeated"].startswith("11 steps")


def test_starts_that_consumed_nothing_do_no_harm(run: Run) -> None:
    run.consume(2, range(5)).consume(2, range(5, 5)).consume(4, range(5, 5)).consume(2, range(5, 17)).end()
    assert run.facts()["starts"] == "4, with 2, 2, 4, 2 process(es)"


def test_a_run_may_go_on_before_the_evaluation_at_the_end_of_an_epoch(run: Run) -> None:
    run.consume(2, range(5))
    run.folder.add_event("resume", 5, data=run.digest, start=1, processes=2, stage=0, epoch=0, step=5)
    run.starts = 2
    run.consume(2, range(5, 17)).end()
    assert run.facts()["once"].startswith("3 of 3 epochs")


@pytest.mark.parametrize(
    ("state", "stands", "proved", "epochs"),
    [("preempted", 8, 8, 1), ("running", 0, 8, 1), ("failed", 10, 8, 1), ("running", 9, 8, 1)],
)
def test_a_run_that_is_not_done_is_proved_as_far_as_it_went(
    run: Run, state: State, stands: int, proved: int, epochs: int
) -> None:
    run.consume(2, range(8)).end(state, stands)
    facts = run.facts()
    assert facts["run"].startswith(f"{state}, not done")
    assert facts["order"].startswith(f"{proved} of 17 steps, 48 samples")
    assert facts["once"].startswith(f"{epochs} of 3 epochs")


def test_of_a_run_that_was_just_killed_the_steps_of_all_processes_count(run: Run) -> None:
    run.consume(3, range(4), beyond={0: 2, 1: 1, 2: 1}).end("running", 0)
    assert run.facts()["order"].startswith("5 of 17 steps")


@pytest.mark.parametrize("rest", [b'{"start": 0, "proc', b"{", b"\0\0\0\0", b"\xff\xfe"])
def test_a_line_that_a_kill_cut_off_is_counted_and_passed_over(run: Run, rest: bytes) -> None:
    run.consume(2, range(5))
    for rank, end in ((0, b"\n"), (1, b"\n")):
        with run.rank(rank).open("ab") as file:
            file.write(rest + end)
    run.consume(2, range(5, 9))
    with run.rank(1).open("ab") as file:
        file.write(rest)
    run.end("running", 5)
    facts = run.facts()
    assert facts["torn"].startswith("3 lines")
    assert facts["order"].startswith("9 of 17 steps")


def test_a_torn_line_within_a_start_is_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    lines = run.rank(1).read_text().splitlines()
    lines[6] = lines[6][:30]
    run.rank(1).write_text("\n".join(lines) + "\n")
    problems = run.problems()
    assert problems[0].startswith(f"{run.rank(1)}:7: can't be parsed")
    assert "stage 0, epoch 1" in problems[1]
    assert "steps 1 to 1 are missing" in problems[1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda line: line.pop("epoch"), "epoch: Field required"),
        (lambda line: line.update(step="3"), "step: Input should be a valid integer"),
        (lambda line: line.update(keys="abc"), "keys: Input should be a valid array"),
        (lambda line: line.update(stage=-1), "stage: Input should be greater"),
    ],
)
def test_a_line_of_another_form_is_named(run: Run, change: Callable[[Line], object], field: str) -> None:
    run.consume(2, range(17)).end()
    run.edit(1, 7, change)
    assert run.problems()[0].startswith(f"{run.rank(1)}:7: is no line of an audit: {field}")


def test_a_key_exchanged_is_named_with_what_was_expected(run: Run) -> None:
    run.consume(2, range(17)).end()
    other = run.row_keys(5)[0]
    old = ""

    def exchange(line: Line) -> None:
        nonlocal old
        old = swap(line, 1, other)

    run.edit(1, 9, exchange)
    problems = run.problems()
    assert problems[0] == (
        f"{run.rank(1)}:9: start 0, stage 0, epoch 1, step 3: row 4 of the global batch: expected {old!r}, found "
        f"{other!r}"
    )
    assert problems[1] == f"stage 0, epoch 1: 1 sample(s) came more than once: {other!r}"
    assert len(problems) == 2


def test_two_samples_exchanged_break_the_order_but_not_once(run: Run) -> None:
    run.consume(1, range(17)).end()
    first, second = run.row_keys(6)[2], run.row_keys(8)[5]
    run.edit(0, 7, lambda line: swap(line, 2, second))
    run.edit(0, 9, lambda line: swap(line, 5, first))
    problems = run.problems()
    assert len(problems) == 2
    assert f"expected {first!r}, found {second!r}" in problems[0]
    assert f"expected {second!r}, found {first!r}" in problems[1]


def test_a_sample_that_is_not_of_these_shards_is_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    run.edit(0, 2, lambda line: swap(line, 0, "bg9_fg9_9"))
    problems = run.problems()
    assert "step 1: row 0 of the global batch: expected" in problems[0]
    assert "found 'bg9_fg9_9'" in problems[0]
    assert problems[1] == "stage 0, epoch 0: 1 sample(s) came that are not of the stage's 30"


def test_a_sample_beyond_the_stages_subset_is_none_of_it(make_config: MakeConfig) -> None:
    run = Run(make_config("--stages.0.samples=24"))
    run.consume(1, range(15)).end("done", 15)
    assert run.facts()["once"].startswith("3 of 3")
    outside = run.keys[-1][-1]
    run.edit(0, 2, lambda line: swap(line, 0, outside))
    assert "stage 0, epoch 0: 1 sample(s) came that are not of the stage's 24" in run.problems()


def test_the_rows_of_another_process_are_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    run.edit(0, 3, lambda line: line.update(keys=run.row_keys(2, 1, 2)))
    problems = run.problems()
    assert problems[0].startswith(f"{run.rank(0)}:3: start 0, stage 0, epoch 0, step 2: row 0 of the global batch")
    assert "2 rows more" in problems[0]
    assert "3 sample(s) came more than once" in problems[1]


def test_two_files_exchanged_are_named(run: Run) -> None:
    run.consume(2, range(3)).end("running", 0)
    one, other = run.rank(0).read_text(), run.rank(1).read_text()
    run.rank(0).write_text(other)
    run.rank(1).write_text(one)
    assert len(run.problems()) == 6


@pytest.mark.parametrize("keys", [2, 4, 0])
def test_a_line_with_too_many_or_too_few_keys_is_named(run: Run, keys: int) -> None:
    run.consume(2, range(17)).end()
    run.edit(1, 2, lambda line: line.update(keys=run.row_keys(1)[:keys]))
    problems = run.problems()
    assert problems[0].startswith(f"{run.rank(1)}:2: start 0, stage 0, epoch 0, step 1: {keys} keys, expected the 3 of")


@pytest.mark.parametrize("number", [1, 3, 5, 6, 10, 12])
def test_a_step_missing_on_one_rank_is_named(run: Run, number: int) -> None:
    run.consume(2, range(17)).end()
    run.remove(1, number)
    position = run.positions[number - 1]
    problems = run.problems()
    assert problems[0].startswith(f"{run.rank(1)}:{number}: ")
    assert (
        f"start 0, stage {position.stage}, epoch {position.epoch}, steps {position.step} to {position.step} are "
        in (problems[0])
    )
    assert problems[1].startswith(f"stage {position.stage}, epoch {position.epoch}: ")
    assert len(problems) == 2


def test_whole_epochs_missing_on_one_rank_are_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    run.remove(1, *range(4, 13))  # from the third step of the first epoch to the second of the last
    problems = run.problems()
    assert "start 0, stage 0, epoch 0, steps 3 to 4 are missing" in problems[0]
    assert any("start 0, stage 0, epoch 1, steps 0 to 4 are missing" in problem for problem in problems)
    assert any("start 0, stage 1, epoch 0, steps 0 to 1 are missing" in problem for problem in problems)


def test_the_last_steps_missing_on_one_rank_are_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    run.remove(1, 16, 17)
    problems = run.problems()
    assert problems == [
        f"{run.rank(1)}: start 0 has no line of stage 1, epoch 0, step 5 (global step 15) or later, but another "
        f"process has, and {run.folder.status}: the run stands at stage 2, epoch 0, step 0 (global step 17)"
    ]


def test_a_file_missing_is_named(run: Run) -> None:
    run.consume(3, range(17)).end()
    run.rank(1).unlink()
    problems = run.problems()
    assert problems[0].startswith(f"{run.rank(1)}: start 0 has no line of stage 0, epoch 0, step 0 (global step 0)")


def test_steps_left_out_between_two_starts_are_named(run: Run) -> None:
    run.consume(2, range(6)).consume(2, range(8, 17)).end()
    problems = run.problems()
    assert problems[0] == (
        f"{run.folder.events}:2: start 1 stands at stage 0, epoch 1, step 3 (global step 8), but no process of start 0 "
        "consumed any step from stage 0, epoch 1, step 1 (global step 6) on"
    )
    assert problems[1] == "stage 0, epoch 1: 18 samples came, expected 30 of 30 in batches of 6"


def test_a_step_that_only_some_processes_consumed_before_a_start_is_named(run: Run) -> None:
    run.consume(2, range(6), beyond={0: 1}).consume(2, range(7, 17)).end()
    problems = run.problems()
    assert problems[0].startswith(f"{run.rank(1)}: start 0 has no line of stage 0, epoch 1, step 1 (global step 6)")


def test_a_start_without_audit_is_named(run: Run) -> None:
    run.consume(2, range(6)).consume(2, range(6, 9)).consume(2, range(9, 17)).end()
    for rank in (0, 1):
        run.remove(rank, 7, 8, 9)
    problems = run.problems()
    assert problems[0].endswith("was it without --audit?")
    assert "no process of start 1 consumed any step" in problems[0]


def test_a_step_twice_in_one_start_is_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    lines = run.rank(0).read_text().splitlines(keepends=True)
    run.rank(0).write_text("".join(lines[:4] + lines[3:]))
    problems = run.problems()
    assert problems == [
        f"{run.rank(0)}:5: start 0, stage 0, epoch 0, step 3: out of place; expected start 0, stage 0, epoch 0, "
        "step 4 of 5"
    ]


def test_a_repeated_step_with_other_keys_is_named(run: Run) -> None:
    run.consume(2, range(6), beyond={0: 2, 1: 2})
    run.edit(1, 8, lambda line: line["keys"].reverse())  # step 7, done again by the next start
    run.consume(2, range(6, 17)).end()
    problems = run.problems()
    assert len(problems) == 1
    assert problems[0].startswith(f"{run.rank(1)}:8: start 0, stage 0, epoch 1, step 2: row 3 of the global batch")


def test_another_number_of_processes_than_that_of_the_start_is_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    run.edit(0, 2, lambda line: line.update(processes=3))
    assert run.problems() == [f"{run.rank(0)}:2: start 0, stage 0, epoch 0, step 1: says 3 processes, but there were 2"]


def test_a_line_of_a_process_that_was_not_there_is_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    shutil.copy(run.rank(1), run.rank(5))
    problems = run.problems()
    assert len(problems) == 1
    assert problems[0].startswith(f"{run.rank(5)}:1: start 0, stage 0, epoch 0, step 0: belongs to no start")


def test_a_line_of_a_start_that_was_not_there_is_named(run: Run) -> None:
    run.consume(1, range(17)).end()
    run.edit(0, 17, lambda line: line.update(start=3))
    problems = run.problems()
    assert problems[0].startswith(f"{run.folder.status}: the run stands at stage 2")
    assert problems[1].startswith(f"{run.rank(0)}:17: start 3, stage 1, epoch 0, step 6: belongs to no start")


def test_a_step_beyond_the_end_of_an_epoch_is_named(run: Run) -> None:
    run.consume(1, range(5)).end("running", 0)
    with run.rank(0).open("a") as file:
        file.write(json.dumps({**run.line(4, 0, 1), "start": 0, "step": 5}) + "\n")
    assert run.problems() == [
        f"{run.rank(0)}:6: start 0, stage 0, epoch 0, step 5: out of place; expected start 0, stage 0, epoch 0, "
        "step 5 of 5"
    ]


def test_replaced_samples_are_counted_and_their_place_is_that_of_the_bad_one(run: Run) -> None:
    run.consume(2, range(17)).end()
    used = run.row_keys(3)[5]

    def replace(line: Line) -> None:
        line["replaced"] = {swap(line, 1, used): used}

    run.edit(0, 4, replace)
    assert run.facts()["replaced"].startswith("1 samples")


def test_a_replacement_from_another_batch_is_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    used = run.row_keys(2)[5]

    def replace(line: Line) -> None:
        line["replaced"] = {swap(line, 1, used): used}

    run.edit(0, 4, replace)
    problems = run.problems()
    assert len(problems) == 1
    assert f"or {used!r} not of the same global batch" in problems[0]


def test_a_replacement_of_a_sample_that_was_not_there_is_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    bad, used = run.row_keys(2)[0], run.row_keys(3)[0]
    run.edit(0, 4, lambda line: line.update(replaced={bad: used}))
    problems = run.problems()
    assert len(problems) == 1
    assert f"{bad!r} is not of its rows" in problems[0]


def test_no_more_than_twenty_problems_are_named(run: Run) -> None:
    run.consume(2, range(17)).end()
    for number in range(1, 18):
        for rank in (0, 1):
            run.edit(rank, number, lambda line: swap(line, 0, "nobody"))
    problems = run.problems()
    assert len(problems) == 21
    assert problems[-1] == "and 17 more"  # 34 lines and 3 epochs


def test_a_done_run_that_stands_elsewhere_than_at_its_end_is_named(run: Run) -> None:
    run.consume(2, range(12)).end("done", 12)
    assert run.problems() == [f"{run.folder.status}: done after 12 steps, but the configuration makes 17"]


def test_a_run_that_stands_beyond_what_was_consumed_is_named(run: Run) -> None:
    run.consume(2, range(12)).end()
    problems = run.problems()
    assert problems[0].startswith(f"{run.folder.status}: the run stands at stage 2, epoch 0, step 0 (global step 17)")
    assert "no process of start 0 consumed any step from stage 1, epoch 0, step 2 (global step 12) on" in problems[0]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {"event": "resume", "start": 1, "global_step": 6},
            "the resume is not as a training with --audit writes it: processes: Field required",
        ),
        ({"event": "resume", "processes": 2, "global_step": 6}, "start: Field required"),
        (
            {"event": "resume", "start": 1, "processes": 2, "epoch": 1, "step": 2, "global_step": 6},
            "is global step 7 of this configuration and data set, but the event says 6",
        ),
        (
            {"event": "resume", "start": 0, "processes": 2, "epoch": 1, "step": 1, "global_step": 6},
            "start 0 can't come here",
        ),
    ],
)
def test_an_event_that_cannot_be_is_refused_by_its_line(run: Run, event: dict[str, Any], expected: str) -> None:
    run.consume(2, range(6)).end("running", 0)
    with run.folder.events.open("a") as file:
        file.write(json.dumps({"data": run.digest, **event}) + "\n")
    with pytest.raises(UserError) as caught:
        audit_run(run.folder.path)
    assert str(caught.value).startswith(f"{run.folder.events}:2: ")
    assert expected in str(caught.value)


def test_events_that_a_kill_cut_off_are_counted(run: Run) -> None:
    run.consume(2, range(6))
    with run.folder.events.open("a") as file:
        file.write('{"time": 17\n')
    assert run.consume(2, range(6, 17)).end().facts()["torn"].startswith("1 lines")


def test_events_gone_are_refused(run: Run) -> None:
    run.consume(2, range(17)).end()
    run.folder.events.unlink()
    with pytest.raises(UserError, match="tells of no start"):
        audit_run(run.folder.path)


def test_a_run_without_audit_says_how_to_get_one(run: Run) -> None:
    with pytest.raises(UserError) as caught:
        audit_run(run.folder.path)
    assert str(caught.value).startswith(f"{run.folder.audit}: no audit files")
    assert "--audit" in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        audit_run(tmp_path)


def test_shards_that_are_gone_are_named(make_config: MakeConfig, own_shards: Shards) -> None:
    run = Run(make_config("--data.manifest", str(own_shards.folder))).consume(1, range(17)).end()
    shutil.rmtree(own_shards.folder)
    with pytest.raises(UserError, match=r"shards\.json: no such file"):
        audit_run(run.folder.path)


def test_keys_that_several_shards_use_are_told_apart_by_their_number(
    make_config: MakeConfig, own_shards: Shards
) -> None:
    """Shards of another program may count their samples from 0, each."""
    manifest = json.loads((own_shards.folder / "shards.json").read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        index = own_shards.folder / shard["index"]
        header, *lines = index.read_text().splitlines()
        for number, line in enumerate(lines):
            lines[number] = re.sub(r"\S+\.(\w+\.jpg|json)", rf"{number:06d}.\1", line)
        index.write_text("\n".join([header, *lines, ""]))
        shard["index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    (own_shards.folder / "shards.json").write_text(json.dumps(manifest))
    run = Run(make_config("--data.manifest", str(own_shards.folder))).consume(2, range(17)).end()
    assert sorted(run.keys[0]) == sorted(run.keys[1]) == [f"{number:06d}" for number in range(8)]
    assert run.facts()["once"].startswith("3 of 3 epochs")
    run.edit(0, 7, lambda line: swap(line, 0, "000003" if line["keys"][0] != "000003" else "000004"))
    problems = run.problems()
    assert problems[0].startswith(f"{run.rank(0)}:7: ")
    assert problems[1].startswith("stage 0, epoch 1: 1 sample(s) came more than once: '00000")


def test_a_stream_without_an_order_is_refused(run: Run) -> None:
    run.consume(1, range(17)).end()
    stream = "  loader: webdataset\n  stream: {train: a.tar, test: b.tar, train_samples: 9, test_samples: 9}\n"
    text = run.folder.config.read_text()
    kept = [line for line in text.splitlines(keepends=True) if not line.startswith(("  loader:", "  stream:"))]
    run.folder.config.write_text("".join(kept).replace("data:\n", "data:\n" + stream))
    with pytest.raises(UserError, match="no fixed order"):
        audit_run(run.folder.path)


def test_lanes_and_seeds_of_stages_are_part_of_the_order(make_config: MakeConfig) -> None:
    run = Run(make_config("--data.max_lanes=1", "--stages.1.seed_offset=5"))
    run.consume(2, range(17)).end()
    assert run.facts()["order"].startswith("17 of 17")
    run.folder.config.write_text(make_config("--data.max_lanes=2").to_yaml())
    assert "row " in run.problems()[0]


def test_a_start_on_other_shards_is_refused(run: Run) -> None:
    run.consume(2, range(17)).end()
    events = run.folder.events
    events.write_text(events.read_text().replace(run.digest, "0" * 64))
    with pytest.raises(UserError, match=r"events\.jsonl:1: saw another data set than data\.manifest lists now"):
        audit_run(run.folder.path)
