"""Where a run starts: the decision for every state in which its folder can be."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from dtrain.checkpoint import Checkpoint, save_checkpoint
from dtrain.config import Config
from dtrain.data.order import Position
from dtrain.plan import plan_run
from dtrain.resume import Start, open_run
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError

from .conftest import Shards

MakeConfig = Callable[..., Config]


def start(
    config: Config, shards: Shards, *, fresh: bool = False, overwrite: bool = False, accept: tuple[str, ...] = ()
) -> Start:
    """Decide as a process would that ends right after."""
    run = RunFolder(config.run)
    plan = plan_run(config, shards.lengths(), rank=0, world_size=1)
    try:
        return open_run(run, config, plan, shards.manifest.digest(), fresh=fresh, overwrite=overwrite, accept=accept)
    finally:
        if run._lock is not None:
            os.close(run._lock)


def save(config: Config, shards: Shards, position: Position, global_step: int) -> Path:
    state = {
        "position": asdict(position),
        "global_step": global_step,
        "identity": config.identity(),
        "manifest": shards.manifest.digest(),
        "metrics_bytes": RunFolder(config.run).metrics_lines.end(),
    }
    weights = {"weight": torch.ones(3)}
    return save_checkpoint(config.run / "checkpoints", global_step, Checkpoint(weights, {}, state))


@pytest.fixture
def begun(make_config: MakeConfig, shards: Shards) -> RunFolder:
    """A run with checkpoints of steps 5 and 8, killed after it logged step 11."""
    config = make_config()
    start(config, shards)
    run = RunFolder(config.run)
    for step, position in ((5, Position(0, 1, 0)), (8, Position(0, 1, 3)), (11, None)):
        run.add_metrics({"global_step": step, "loss": 0.5})
        if position:
            save(config, shards, position, step)
    run.write_status("running", "", 8)
    return run


def damage(run: RunFolder, *steps: int) -> None:
    for step in steps:
        os.truncate(run.checkpoints / f"step-{step:08d}" / "model.safetensors", 5)


def test_a_new_folder_begins_a_run_and_gets_its_configuration(make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--run", str(make_config().run / "not/there/yet"))
    assert start(config, shards) == Start()
    assert RunFolder(config.run).load_config() == config


def test_it_goes_on_from_the_newest_checkpoint(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    found = start(make_config(), shards)
    assert found.checkpoint == begun.checkpoints / "step-00000008"
    assert found.position == Position(0, 1, 3)
    assert found.state["global_step"] == 8
    assert found.repeated_steps == 3
    assert [json.loads(line)["global_step"] for line in begun.metrics.read_text().splitlines()] == [5, 8]
    assert found.passed_over == ()
    assert not found.finished


def test_a_line_of_metrics_that_a_kill_cut_off_does_not_matter(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    with begun.metrics.open("a") as file:
        file.write('\0\0\n{"global_st')
    assert start(make_config(), shards).repeated_steps == 3


def test_it_goes_on_from_an_older_one_if_the_newest_is_damaged(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    damage(begun, 8)
    (begun.checkpoints / ".step-00000010.partial").mkdir()
    found = start(make_config(), shards)
    assert found.position == Position(0, 1, 0)
    assert found.repeated_steps == 6
    assert [name for name, _ in found.passed_over] == [".step-00000010.partial", "step-00000008"]


def test_all_damaged_is_refused_and_nothing_is_removed(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    damage(begun, 5, 8)
    with pytest.raises(UserError) as caught:
        start(make_config(), shards)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{begun.checkpoints}: every checkpoint is damaged:"
    assert lines[1].startswith("  step-00000008: model.safetensors has 5 bytes")
    assert lines[2].startswith("  step-00000005: model.safetensors has 5 bytes")
    assert "--fresh" in lines[3]
    assert len(list(begun.checkpoints.iterdir())) == 2
    assert begun.metrics.exists()


def test_a_run_killed_during_its_first_checkpoint_begins_anew(make_config: MakeConfig, shards: Shards) -> None:
    config = make_config()
    start(config, shards)
    run = RunFolder(config.run)
    run.add_metrics({"global_step": 2})
    save(config, shards, Position(0, 0, 3), 3).rename(run.checkpoints / ".step-00000003.partial")
    found = start(config, shards)
    assert found.position == Position()
    assert found.checkpoint is None
    assert [name for name, _ in found.passed_over] == [".step-00000003.partial"]
    assert not run.metrics.exists()
    assert run.load_config() == config


def test_a_changed_configuration_is_refused_with_what_changed(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    before = begun.config.read_bytes()
    with pytest.raises(UserError) as caught:
        start(make_config("--seed=4", "--stages.1.batch=2"), shards)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{begun.path}: was begun with another configuration (then → now):"
    assert lines[1:-1] == ["  stages.1.batch: 4 → 2", "  seed: 0 → 4"]
    assert "--run" in lines[-1]
    assert "--fresh" in lines[-1]
    assert begun.config.read_bytes() == before


def test_what_changes_speed_alone_may_change(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--data.workers=0", "--max_micro_batch=2", "--checkpoint.every=1 steps")
    assert start(config, shards).position == Position(0, 1, 3)
    assert begun.load_config() == config


def test_other_samples_are_refused(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    manifest = shards.manifest
    test_alone = manifest.model_copy(update={"splits": {**manifest.splits, "train": manifest.splits["test"]}})
    with pytest.raises(UserError, match=rf"data\.manifest: {shards.folder} lists other samples"):
        open_run(
            begun, make_config(), plan_run(make_config(), shards.lengths(), rank=0, world_size=1), test_alone.digest()
        )


def test_shards_may_lie_elsewhere(
    begun: RunFolder, make_config: MakeConfig, shards: Shards, own_shards: Shards
) -> None:
    config = make_config("--data.manifest", str(own_shards.folder))
    assert start(config, own_shards).position == Position(0, 1, 3)


def test_fresh_forgets_an_unfinished_run(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--seed=9")
    assert start(config, shards, fresh=True) == Start()
    assert not begun.checkpoints.exists()
    assert not begun.metrics.exists()
    assert begun.read_status() == {}
    assert begun.load_config() == config


def test_fresh_is_the_way_out_when_all_are_damaged(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    damage(begun, 5, 8)
    assert start(make_config(), shards, fresh=True) == Start()


def test_a_finished_run_is_said_to_be_finished(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    begun.write_status("done", "", 8)
    found = start(make_config(), shards)
    assert found.finished
    assert found.state["global_step"] == 8


def test_a_finished_run_with_a_damaged_end_is_finished_again(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    begun.write_status("done", "", 8)
    damage(begun, 8)
    found = start(make_config(), shards)
    assert not found.finished
    assert found.position == Position(0, 1, 0)


def test_fresh_refuses_a_finished_run_unless_told(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    begun.write_status("done", "", 8)
    with pytest.raises(UserError, match=rf"{begun.path}: holds a finished run.*--overwrite"):
        start(make_config(), shards, fresh=True)
    assert len(list(begun.checkpoints.iterdir())) == 2
    assert start(make_config(), shards, fresh=True, overwrite=True) == Start()
    assert not begun.checkpoints.exists()
