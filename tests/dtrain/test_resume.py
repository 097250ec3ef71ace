"""Where a run starts: the decision for every state in which its folder can be."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from dtrain.bucket import Bucket
from dtrain.checkpoint import Checkpoint, save_checkpoint
from dtrain.config import Config
from dtrain.data.order import Position
from dtrain.plan import plan_run
from dtrain.resume import Start, open_run
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError
from shard_tools.storage import LocalStorage

from .conftest import Shards, fill

MakeConfig = Callable[..., Config]


def start(
    config: Config,
    shards: Shards,
    *,
    fresh: bool = False,
    overwrite: bool = False,
    from_stage: int | None = None,
    accept: tuple[str, ...] = (),
    bucket: Bucket | None = None,
    launch: str = "",
    restarted: bool = False,
) -> Start:
    """Decide as a process would that ends right after."""
    run = RunFolder(config.run)
    plan = plan_run(config, shards.lengths(), rank=0, world_size=1)
    digest = shards.manifest.digest()
    try:
        return open_run(
            *(run, config, plan, digest),
            fresh=fresh,
            overwrite=overwrite,
            from_stage=from_stage,
            accept=accept,
            bucket=bucket,
            launch=launch,
            restarted=restarted,
        )
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


@pytest.mark.parametrize("event", ["checkpoint", "resume"])
def test_a_run_whose_checkpoints_are_gone_is_not_forgotten(
    event: str, begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    """Their folder may be on a disk that is not mounted."""
    begun.add_event("start", 0)
    begun.add_event(event, 8, checkpoint="step-00000008")
    elsewhere = begun.checkpoints.rename(begun.path.with_name("elsewhere"))
    before = everything(begun)
    message = refused(make_config(), shards)
    assert message.startswith(
        f"{begun.checkpoints}: holds no checkpoint, but {begun.events} tells of some; put the fol"
    )
    assert message.endswith("start anew with --fresh")
    assert everything(begun) == before
    elsewhere.rename(begun.checkpoints)
    assert start(make_config(), shards).position == Position(0, 1, 3)
    shutil.rmtree(begun.checkpoints)
    assert start(make_config(), shards, fresh=True) == Start()


def test_a_finished_run_whose_checkpoints_are_gone_is_not_forgotten(
    finished: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    """Also one that has no events."""
    shutil.rmtree(finished.checkpoints)
    before = everything(finished)
    message = refused(make_config(), shards)
    assert message.startswith(f"{finished.checkpoints}: holds no checkpoint, but the run is done")
    assert message.endswith("start anew with --fresh --overwrite")
    assert everything(finished) == before
    assert start(make_config(), shards, fresh=True, overwrite=True) == Start()


def test_checkpoints_of_a_run_that_began_anew_since_do_not_matter(make_config: MakeConfig, shards: Shards) -> None:
    config = make_config()
    start(config, shards)
    run = RunFolder(config.run)
    for event in ("start", "checkpoint", "start", "save_failed"):
        run.add_event(event, 0)
    assert start(config, shards) == Start(number=2)


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


@pytest.fixture
def finished(make_config: MakeConfig, shards: Shards) -> RunFolder:
    """A run of two stages that is done, with checkpoints of the end of both."""
    config = make_config()
    start(config, shards)
    run = RunFolder(config.run)
    first, last = plan_run(config, shards.lengths(), rank=0, world_size=1).stage_ends().values()
    for stage, step in enumerate((first, last)):
        run.add_metrics({"global_step": step, "loss": 0.5})
        save(config, shards, Position(stage + 1, 0, 0), step)
    (run.panels).mkdir()
    (run.panels / f"step-{last:08d}.png").touch()
    run.write_status("done", "", last)
    return run


def everything(run: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}


def test_going_back_to_a_stage_forgets_what_came_after(
    finished: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    first, last = sorted(path.name for path in finished.checkpoints.iterdir())
    found = start(make_config("--stages.1.batch=2"), shards, from_stage=1)
    assert (found.checkpoint, found.finished) == (finished.checkpoints / first, False)
    assert [path.name for path in finished.checkpoints.iterdir()] == [first]
    assert not list(finished.panels.iterdir())
    assert len(finished.metrics.read_text().splitlines()) == 1
    assert finished.read_status()["state"] == "running", "it is not done any more, also if it is killed now"
    assert last != first


def test_a_launcher_that_starts_it_again_goes_back_once(
    finished: RunFolder, make_config: MakeConfig, shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before it went back it still has to; killed before it saved anything, it still may have other stages."""
    changed = make_config("--stages.1.batch=2")
    first, _ = sorted(finished.checkpoints.iterdir())
    asked: dict[str, Any] = {"from_stage": 1, "launch": "one", "restarted": True}
    assert start(changed, shards, **asked).from_stage == 1
    assert not capsys.readouterr().err

    found = start(changed, shards, **asked)
    assert (found.checkpoint, found.from_stage, found.finished) == (first, None, False)
    assert "--from-stage 1: the launcher has started this again, so the run goes on\n" in capsys.readouterr().err
    later = save(changed, shards, Position(1, 0, 1), 11)
    assert start(changed, shards, **asked).checkpoint == later

    assert start(changed, shards, **asked | {"launch": "another"}).checkpoint == first
    assert not later.exists()


def test_a_launcher_that_starts_it_again_begins_anew_once(
    finished: RunFolder, make_config: MakeConfig, shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    asked: dict[str, Any] = {"fresh": True, "overwrite": True, "launch": "one", "restarted": True}
    assert start(config, shards, **asked).checkpoint is None
    assert not capsys.readouterr().err
    saved = save(config, shards, Position(0, 0, 1), 1)
    assert start(config, shards, **asked).checkpoint == saved
    assert "--fresh: the launcher has started this again, so the run goes on\n" in capsys.readouterr().err
    assert start(config, shards, **asked | {"restarted": False}).checkpoint is None


@pytest.mark.parametrize("refused", ["--seed=4", "--stages.0.batch=2"])
def test_going_back_that_is_refused_changes_nothing(
    refused: str, finished: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    before = everything(finished)
    with pytest.raises(UserError):
        start(make_config(refused), shards, from_stage=1)
    assert everything(finished) == before
    assert start(make_config(), shards).finished


def test_going_back_that_is_refused_leaves_the_metrics_also_where_the_checkpoint_has_to_be_fetched(
    finished: RunFolder, make_config: MakeConfig, shards: Shards, tmp_path: Path
) -> None:
    first, _ = sorted(finished.checkpoints.iterdir())
    log = tmp_path / finished.metrics.name
    log.write_text(finished.metrics.read_text().splitlines(keepends=True)[0])
    bucket = Bucket(LocalStorage(tmp_path / "there"))
    bucket.upload(first, [log], lambda: False)
    shutil.rmtree(first)
    metrics = finished.metrics.read_bytes()
    with pytest.raises(UserError, match="seed: 0 → 4"):
        start(make_config("--seed=4"), shards, from_stage=1, bucket=bucket)
    assert finished.metrics.read_bytes() == metrics
    assert start(make_config(), shards, bucket=bucket).finished
    assert start(make_config(), shards, from_stage=1, bucket=bucket).checkpoint == first
    assert finished.metrics.read_bytes() == log.read_bytes()


def test_going_back_to_what_is_damaged_changes_nothing(
    finished: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    first, _ = sorted(finished.checkpoints.iterdir())
    (first / "model.safetensors").write_bytes(b"12345")
    before = everything(finished)
    with pytest.raises(UserError, match=rf"{first}: --from-stage 1 begins with it, but it is damaged: model.safetens"):
        start(make_config(), shards, from_stage=1)
    assert everything(finished) == before


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


def refused(config: Config, shards: Shards, *accept: str) -> str:
    """The message."""
    with pytest.raises(UserError) as caught:
        start(config, shards, accept=accept)
    return str(caught.value)


def test_an_accepted_change_goes_on_and_is_listed(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--seed=4", "--optimizer.learning_rate=0.5")
    found = start(config, shards, accept=("optimizer.learning_rate", "seed"))
    assert found.position == Position(0, 1, 3)
    assert sorted(found.changed) == ["optimizer.learning_rate: 0.001 → 0.5", "seed: 0 → 4"]
    assert begun.load_config() == config


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("optimizer.name=sgd", "optimizer.name: adamw → sgd, which begins with an empty state"),
        ("init_from=other", "init_from: None → other, which changes nothing in a run that has begun"),
    ],
)
def test_what_a_change_does_or_does_not_is_said(
    begun: RunFolder, make_config: MakeConfig, shards: Shards, change: str, line: str
) -> None:
    config = make_config(f"--{change}")
    assert f"  {line}\n" in refused(config, shards)
    assert start(config, shards, accept=(change.partition("=")[0],)).changed == (line,)


def test_nothing_that_differs_is_listed_where_nothing_differs(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    assert start(make_config(), shards, accept=("seed", "optimizer.learning_rate")).changed == ()


def test_the_refusal_of_a_change_says_how_to_accept_it(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    config = make_config("--stages.1.batch=2", "--seed=4")
    assert refused(config, shards).endswith("add --accept-change stages.1.batch,seed.")
    message = refused(config, shards, "seed", "stages")
    assert "  stages.1.batch: 4 → 2\n" in message
    assert "seed" not in message, "it is accepted"
    assert message.endswith("add --accept-change stages.1.batch.")
    assert begun.load_config() == make_config()
    assert [json.loads(line)["global_step"] for line in begun.metrics.read_text().splitlines()] == [5, 8, 11]


def test_another_network_cannot_be_accepted(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--model.width=0.125", "--seed=4")
    for accept in ((), ("model.width", "seed")):
        message = refused(config, shards, *accept)
        assert "  model.width: 0.0625 → 0.125\n" in message
        assert "--fresh" in message
        assert "model.width" not in message.partition("--accept-change")[2]
    assert "--accept-change" not in message


def test_an_order_of_another_version_cannot_be_accepted(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    config = make_config()
    state = {
        "position": asdict(Position(0, 1, 4)),
        "global_step": 9,
        "identity": {**config.identity(), "order": 0},
        "manifest": shards.manifest.digest(),
        "metrics_bytes": 0,
    }
    save_checkpoint(begun.checkpoints, 9, Checkpoint({}, {}, state))
    message = refused(config, shards, "order")
    assert "  order: 0 → " in message
    assert "--accept-change" not in message


@pytest.mark.parametrize(
    ("overrides", "accept"),
    [
        (["--stages=[{size: 48, batch: 4}]"], None),
        (["--stages.0.epochs=1"], ("stages.0.epochs",)),
        (["--stages.0.batch=15"], ("stages.0.batch",)),
        (["--stages.0.samples=12"], ("stages.0.samples",)),
    ],
)
def test_a_place_that_the_changed_stages_do_not_have(
    begun: RunFolder, make_config: MakeConfig, shards: Shards, overrides: list[str], accept: tuple[str, ...] | None
) -> None:
    """The run stands in the second epoch of its first stage, three steps behind it."""
    config = make_config(*overrides)
    everything = tuple({**make_config().identity(), **config.identity()})
    message = refused(config, shards, *(accept or everything))
    assert message.startswith(f"{begun.path}: stands at stage 0, epoch 1, step 3, which the changed configuration")
    assert "--fresh" in message
    assert begun.load_config() == make_config()
    assert start(make_config(), shards).position == Position(0, 1, 3)


@pytest.mark.parametrize("change", ["--stages.0.batch=5", "--stages.0.batch=3", "--stages.0.samples=24"])
def test_a_change_by_which_other_steps_lie_behind_the_run(
    begun: RunFolder, make_config: MakeConfig, shards: Shards, change: str
) -> None:
    """The position is there, but it is not that of step 8 any more: samples would be left out or seen again."""
    key = change.removeprefix("--").partition("=")[0]
    message = refused(make_config(change), shards, key)
    assert message.startswith(f"{begun.path}: ")
    assert "--fresh" in message
    assert begun.load_config() == make_config()


def test_what_lies_ahead_may_change(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--stages.0.epochs=3", "--stages.1.batch=2", "--stages.1.samples=8")
    found = start(config, shards, accept=("stages.0.epochs", "stages.1.batch", "stages.1.samples"))
    assert found.position == Position(0, 1, 3)
    assert len(found.changed) == 3


def other_data(shards: Shards) -> str:
    manifest = shards.manifest
    return manifest.model_copy(update={"splits": {**manifest.splits, "train": manifest.splits["test"]}}).digest()


def test_another_data_set_can_be_accepted(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    config = make_config()
    plan = plan_run(config, shards.lengths(), rank=0, world_size=1)
    with pytest.raises(UserError, match=r"lists other samples.*(.|\n)*--accept-change data\.manifest\.$"):
        open_run(begun, config, plan, other_data(shards))
    assert begun._lock is not None
    os.close(begun._lock)
    found = open_run(begun, config, plan, other_data(shards), accept=["data.manifest"])
    assert found.position == Position(0, 1, 3)
    assert found.changed == (f"data.manifest: {shards.folder} lists other samples than the run was begun with",)


def test_the_same_command_goes_on_after_the_accepted_change_was_saved(
    begun: RunFolder, make_config: MakeConfig, shards: Shards
) -> None:
    """And before; and the old one is refused after."""
    config = make_config("--seed=4")
    for _ in range(2):
        assert start(config, shards, accept=("seed",)).changed == ("seed: 0 → 4",)
    save(config, shards, Position(0, 1, 4), 9)
    for accept in (("seed",), ()):
        found = start(config, shards, accept=accept)
        assert (found.position, found.changed) == (Position(0, 1, 4), ())
    assert "  seed: 4 → 0\n" in refused(make_config(), shards)
    damage(begun, 9)
    assert start(config, shards, accept=("seed",)).position == Position(0, 1, 3)
    assert "  seed: 0 → 4\n" in refused(config, shards)


def test_a_finished_run_may_get_more_epochs(begun: RunFolder, make_config: MakeConfig, shards: Shards) -> None:
    config = make_config("--stages.1.epochs=2")
    save(make_config(), shards, Position(1, 0, 7), 17)
    begun.write_status("done", "", 17)
    assert start(make_config(), shards).finished
    assert "stages.1.epochs: 1 → 2" in refused(config, shards)
    found = start(config, shards, accept=("stages.1.epochs",))
    assert not found.finished
    assert found.position == Position(1, 0, 7)


def test_events_outlive_a_run_that_never_had_a_checkpoint(make_config: MakeConfig, shards: Shards) -> None:
    config = make_config()
    run = RunFolder(config.run)
    assert start(config, shards) == Start()
    run.add_event("start", 0)
    run.add_metrics({"global_step": 1})
    with run.events.open("a") as events:
        events.write('{"event": "sta')
    assert start(config, shards) == Start(number=1)
    run.add_event("start", 0)
    assert start(config, shards) == Start(number=2)
    assert not run.metrics.exists()
    first, torn, second = run.events.read_text().splitlines()
    assert [json.loads(line)["event"] for line in (first, second)] == ["start", "start"]
    assert torn == '{"event": "sta'
    assert start(config, shards, fresh=True) == Start()
    assert not run.events.exists()


def test_a_disk_without_room_for_the_configuration_is_one_clear_error(
    make_config: MakeConfig, shards: Shards, small_disk: Path
) -> None:
    config = make_config("--run", str(small_disk / "run"))
    start(config, shards)
    save(config, shards, Position(0, 1, 0), 5)
    ballast = fill(small_disk)
    message = refused(config, shards)
    assert message.startswith(f"{small_disk}/run")
    assert "No space left on device" in message
    ballast.unlink()
    assert start(config, shards).position == Position(0, 1, 0)
