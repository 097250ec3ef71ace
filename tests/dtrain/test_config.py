"""Configurations: what is refused and how it is said, overrides, and what makes two runs the same."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dtrain.arguments import build_parser, named_overrides
from dtrain.config import Config, OptimizerConfig, ScheduleConfig, StageConfig, differences, load_config
from shard_tools.errors import UserError

BASE = "run: runs/a\ndata:\n  manifest: shards\nstages:\n  - {size: 32, batch: 4}\n  - {size: 64, batch: 2}\n"

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load BASE, or another text, with overrides."""

    def load_text(*overrides: str, text: str = BASE) -> Config:
        file = tmp_path / "some.yaml"
        file.write_text(text, encoding="utf-8")
        return load_config(file, overrides)

    return load_text


def message(load: Load, *overrides: str, text: str = BASE) -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides, text=text)
    return str(caught.value)


def test_defaults_and_given_values(load: Load) -> None:
    config = load()
    assert config.run == Path("runs/a")
    assert [(stage.size, stage.batch, stage.epochs) for stage in config.stages] == [(32, 4, 1), (64, 2, 1)]
    assert config.model.width == 1.0
    assert config.loss.scale == 1.0
    assert config.precision == "float32"


def test_the_demo_is_a_valid_configuration() -> None:
    assert load_config(Path(__file__).parents[2] / "configs/demo.yaml").stages


@pytest.mark.parametrize(
    ("override", "key", "suggestion"),
    [
        ("--sead=1", "sead", "'seed'"),
        ("--data.worker=3", "data.worker", "'workers'"),
        ("--data.threads=3", "data.threads", "'workers'"),
        ("--stages.1.siez=8", "stages.1.siez", "'size'"),
        ("--optimizer.learning_rat=1", "optimizer.learning_rat", "'learning_rate'"),
        ("--zzz.a.b=1", "zzz", "known keys: run, data, stages"),
        ("--model.qqq=1", "model.qqq", "known keys: name, width"),
    ],
)
def test_an_unknown_key_is_named_and_the_right_one_suggested(
    load: Load, override: str, key: str, suggestion: str
) -> None:
    text = message(load, override)
    assert f"{key}: unknown key" in text
    assert suggestion in text
    assert "some.yaml" in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stages.0.batch", "0"),
        ("stages.0.batch", "2.5"),
        ("stages.0.batch", "many"),
        ("stages.0.batch", "true"),
        ("stages.1.size", "12"),
        ("stages.1.size", "0"),
        ("stages.1.size", "-8"),
        ("stages.1.epochs", "0"),
        ("stages.0.samples", "0"),
        ("stages.0.learning_rate", "0"),
        ("model.width", "-1"),
        ("model.width", "0.01"),
        ("model.width", ".nan"),
        ("optimizer.learning_rate", "1e400"),
        ("optimizer.learning_rate", "nan"),
        ("optimizer.learning_rate", "-1e-3"),
        ("optimizer.momentum", "1"),
        ("optimizer.name", "adamx"),
        ("schedule.name", "linear"),
        ("schedule.warmup_samples", "-1"),
        ("precision", "bogus"),
        ("precision", "no"),
        ("loss.scale", "0"),
        ("data.workers", "-1"),
        ("max_micro_batch", "0"),
        ("seed", "-1"),
        ("seed", "4294967296"),
        ("seed", "no"),
        ("checkpoint.every", "0 steps"),
        ("checkpoint.keep_last", "0"),
        ("log.audit", "maybe"),
        ("log.trackers", "tensorboard"),
    ],
)
def test_an_impossible_value_is_named_with_its_key(load: Load, key: str, value: str) -> None:
    lines = message(load, f"--{key}={value}").splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"  {key}: ")
    assert f"got '{value}'" in lines[1] or lines[1].endswith("got inf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BASE + "seed: no\n", "seed: can't be true or false"),
        (BASE + "precision: no\n", "precision: can't be true or false"),
        (BASE + "model: {width: yes}\n", "model.width: can't be true or false"),
        (BASE + "model: deep\n", "model.name: Input should be 'dense' or 'shrink', got 'deep'"),
        (
            BASE + "loss: {depth: {l3: 1}}\n",
            "loss.depth: l3 is no such loss; expected some of l1, mse, smooth_l1",
        ),
        (BASE + "loss: {mask: {mse: 0}}\n", "loss.mask: expected a weight above 0 for mse; leave a term out"),
        (BASE + "loss: {mask: {bce: true}}\n", "loss.mask: expected a weight such as 1.0 for bce; leave a term out"),
        (BASE + "loss: {mask: {}}\n", "loss.mask: expected at least one term, such as {mse: 1}"),
        (BASE + "schedule: {name: step}\n", "schedule.step_samples: is missing"),
        (BASE + "schedule: {name: one_cycle, warmup_samples: 5}\n", "schedule: one_cycle rises by itself"),
        (
            "run: a\ndata: {manifest: b}\nstages: [{size: 8, batch: 1, epochs: 1, steps: 2}]\n",
            "stages.0: epochs and steps are given; expected one of them",
        ),
        (
            "run: a\ndata: {manifest: b}\nstages: [{size: 8, batch: 1}]\nloss: {depth: {ssim: 1}}\n",
            "stages.0.size: the loss ssim needs 11 pixels a side, but is taken at 8",
        ),
        (
            "run: a\ndata: {manifest: b}\nstages: [{size: 64, batch: 1}]\nloss: {mask: {ssim: 1}}\nmodel: shrink\n",
            "stages.0.size: the loss ssim needs 11 pixels a side, but is taken at 8",
        ),
        (BASE + "model: 5\n", "model: expected a section with keys of its own, got 5"),
        (BASE + "model: [1]\n", "model: expected a section with keys of its own, got [1]"),
        (BASE + "model:\n", "model: expected a section with keys of its own, got None"),
        (BASE + "1: 2\n", "1: Keys should be strings"),
        (BASE + "model: {1: 2}\n", "model.1: Keys should be strings"),
        (BASE + "stages.0.size: 8\n", "stages.0.size: unknown key"),
        (BASE.replace("runs/a", "2026"), "run: expected a path; put a number or a date in quotes, got 2026"),
        (BASE.replace("runs/a", "''"), "run: expected the path of a folder, got ''"),
        (BASE.replace("run: runs/a\n", ""), "run: is missing"),
        (BASE.replace("  manifest: shards\n", "  workers: 1\n"), "data.manifest: is missing"),
        (BASE.replace("manifest: shards", "manifest: ''"), "data.manifest: is missing"),
        ("run: a\ndata: {manifest: b}\nstages: []\n", "stages: expected one stage or more, got []"),
        ("run: a\ndata: {manifest: b}\nstages: {size: 8}\n", "stages: expected a list, got {'size': 8}"),
        ("run: a\ndata: {manifest: b}\nstages: [7]\n", "stages.0: expected a section with keys of its own, got 7"),
        ("run: a\ndata: {manifest: b}\nstages: [{size: 8}]\n", "stages.0.batch: is missing"),
    ],
)
def test_what_a_file_may_not_say(load: Load, text: str, expected: str) -> None:
    lines = message(load, text=text).splitlines()
    assert lines[0].endswith("some.yaml: not a valid configuration:")
    assert [line for line in lines[1:] if not line.startswith(f"  {expected}")] == []


def test_all_that_is_wrong_is_said_at_once(load: Load) -> None:
    text = message(load, "--seed=-1", "--stages.0.batch=0", "--sead=2")
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == ["stages.0.batch", "seed", "sead"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a mapping"),
        (b"- 1\n", "expected a mapping"),
        (b"5\n", "expected a mapping"),
        (b"a: [", "not valid YAML"),
        (b"a: b: c\n", "not valid YAML"),
        (b"? [a]\n: 2\n", "not valid YAML"),
        (b"---\na: 1\n---\na: 2\n", "not valid YAML"),
        (b"day: 2020-13-45\n", "not valid YAML"),
        (b"seed: 1\nseed: 2\n", "key 'seed' is given twice"),
        (b"model: {width: 1, width: 2}\n", "key 'width' is given twice"),
        (b"[" * 5000, "not valid YAML"),
        (b"run: !!python/object/apply:os.system [touch touched]\n", "not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\x00", "cannot be read"),
        (b"\x00\x01", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration(
    tmp_path: Path, content: bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "some.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert expected in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


def test_overrides_reach_every_depth(load: Load) -> None:
    config = load(
        *("--seed", "7", "--data.workers=0", "--stages.0.size", "16", "--stages.1.epochs=3"),
        *("--optimizer.learning_rate", "2e-3", "--run", "runs/b=c", "--stages.1.samples=12"),
        *("--log.audit", "true", "--log.trackers", "[]"),
    )
    assert config.seed == 7
    assert config.data.workers == 0
    assert [stage.size for stage in config.stages] == [16, 64]
    assert [stage.epochs for stage in config.stages] == [1, 3]
    assert [stage.samples for stage in config.stages] == [None, 12]
    assert config.optimizer.learning_rate == 0.002
    assert config.run == Path("runs/b=c")
    assert config.log.audit is True
    assert config.log.trackers == ()


def test_the_last_override_of_a_key_counts(load: Load) -> None:
    assert load("--seed=1", "--seed=2").seed == 2


def test_a_whole_section_item_or_list_can_be_overridden(load: Load) -> None:
    assert [stage.size for stage in load("--stages.0", "{size: 8, batch: 2}").stages] == [8, 64]
    assert [stage.size for stage in load("--stages=[{size: 24, batch: 2}]").stages] == [24]
    assert load("--model", "{width: 0.5}").model.width == 0.5


def test_null_takes_a_value_back(load: Load) -> None:
    text = BASE.replace("batch: 4", "batch: 4, samples: 9")
    assert load(text=text).stages[0].samples == 9
    assert load("--stages.0.samples", "null", text=text).stages[0].samples is None


@pytest.mark.parametrize("name", ["2026", "2026-01-02", "no", "1e3", "010", "~", "a: b", "run #5", "-x", "*a", "@b"])
def test_a_text_is_taken_as_it_stands(load: Load, name: str) -> None:
    assert load(f"--run={name}").run == Path(name)
    assert load(f"--data.train_split={name}").data.train_split == name


def test_exponents_are_numbers_in_a_file_too(load: Load) -> None:
    assert load(text=BASE + "optimizer: {learning_rate: 2e-3}\n").optimizer.learning_rate == 0.002


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--seed"], "--seed: a value is missing"),
        (["--seed="], "--seed: a value is missing"),
        (["--run", ""], "--run: a value is missing"),
        (["seed", "1"], "'seed': expected an option"),
        (["--seed", "1", "2"], "'2': expected an option"),
        (["--=1"], "'--=1': expected an option"),
        (["--", "1"], "'--': expected an option"),
        (["--.data=1"], "'--.data=1': expected an option"),
        (["--data..threads=1"], "expected an option"),
        (["--stages.2.size", "8"], "--stages.2.size: '2' is no item; there are 2"),
        (["--stages.2", "{size: 8, batch: 1}"], "--stages.2: '2' is no item"),
        (["--stages.-1.size", "8"], "'-1' is no item"),
        (["--stages.x.size", "8"], "'x' is no item"),
        (["--stages.².size", "8"], "'²' is no item"),
        (["--data.manifest.x", "1"], "--data.manifest.x: 'manifest' is a value, not a section"),
        (["--stages.0.size.x", "1"], "--stages.0.size.x: 'size' is a value, not a section"),
        (["--seed", "[1"], "--seed: not valid YAML"),
        (["--seed", "{[1]: 2}"], "--seed: not valid YAML"),
        (["--seed", "[" * 5000], "--seed: not valid YAML"),
        (["--model", "[!!python/object/apply:os.system [true]]"], "--model: not valid YAML"),
    ],
)
def test_overrides_that_cannot_be_applied(load: Load, overrides: list[str], expected: str) -> None:
    assert expected in message(load, *overrides)


STREAM = """run: runs/a
data:
  loader: webdataset
  stream: {train: "train-{0..3}.tar.gz", test: test.tar.gz, train_samples: 9, test_samples: 5}
stages:
  - {size: 32, batch: 4}
"""


def test_a_stream_needs_no_manifest_and_reads_back_equal(load: Load) -> None:
    config = load(text=STREAM)
    assert load(text=config.to_yaml()) == config
    assert "data.stream: is missing" in message(load, "--data.stream", "null", text=STREAM)


@pytest.mark.parametrize(("key", "hint"), [("shufle", "did you mean 'shuffle'?"), ("zzz", "known keys: train, test,")])
def test_an_unknown_key_of_the_stream_gets_the_keys_of_the_stream(load: Load, key: str, hint: str) -> None:
    assert f"data.stream.{key}: unknown key; {hint}" in message(load, f"--data.stream.{key}=1", text=STREAM)


def test_the_resolved_configuration_reads_back_equal(load: Load, tmp_path: Path) -> None:
    config = load(
        *("--run", "2026", "--optimizer.learning_rate", "1e-7", "--precision=bf16", "--loss.scale=0.1"),
        *("--stages.0.samples=3", "--stages.0.learning_rate=3e-5", "--data.train_split=no"),
    )
    file = tmp_path / "resolved.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(file) == config
    assert set(yaml.safe_load(config.to_yaml())) == set(Config.model_fields)


IDENTITY = {
    *(f"data.{key}" for key in ("train_split", "test_split", "decode", "max_lanes", "loader", "stream")),
    *("order", "model.name", "model.width", "precision", "seed", "sync_batch_norm", "init_from"),
    *("loss.scale", "loss.depth.mse", "loss.mask.bce"),
    *(f"stages.{n}.{key}" for n in (0, 1) for key in StageConfig.model_fields),
    *(f"optimizer.{key}" for key in OptimizerConfig.model_fields),
    *(f"schedule.{key}" for key in ScheduleConfig.model_fields),
    *(f"augment.{key}" for key in ("brightness", "contrast", "saturation", "hue", "flip", "crop")),
}


def test_a_file_may_extend_another_one(load: Load, tmp_path: Path) -> None:
    load()
    (tmp_path / "more").mkdir()
    extending = tmp_path / "more" / "other.yaml"
    extending.write_text("extends: ../some.yaml\nrun: runs/b\nloss: {depth: {l1: 2}}\nmodel: shrink\n")
    third = tmp_path / "third.yaml"
    third.write_text("extends: more/other.yaml\nmodel: {width: 0.5}\nstages: [{size: 8, batch: 2}]\n")
    config = load_config(extending)
    assert (config.run, config.stages, config.loss.depth) == (Path("runs/b"), load().stages, {"l1": 2.0})
    config = load_config(third, ["--loss.depth.mse", "3"])
    assert (config.run, len(config.stages), config.loss.depth) == (Path("runs/b"), 1, {"l1": 2.0, "mse": 3.0})
    assert (config.model.name, config.model.width) == ("shrink", 0.5)
    assert load_config(third, ["--model", "dense"]).model.width == 0.5
    for text, expected in (
        ("extends: none.yaml\n", f"none.yaml: no such file; expected a run configuration, which {third} extends"),
        ("extends: [a]\n", "third.yaml: extends: expected the path of another configuration"),
        ("extends: third.yaml\n", "third.yaml: extends: third.yaml extends this file in turn"),
    ):
        third.write_text(text)
        with pytest.raises(UserError, match=re.escape(expected)):
            load_config(third)


def test_the_identity_is_what_decides_the_weights(load: Load) -> None:
    assert set(load().identity()) == IDENTITY


@pytest.mark.parametrize(
    "override",
    [
        *("--run=b", "--data.manifest=b", "--data.workers=9", "--data.background_cache_mb=1", "--max_micro_batch=1"),
        *("--data.on_bad_sample=replace", "--data.max_bad_samples=1", "--data.cache_dir=c", "--data.cache_size=1GB"),
        *("--data.connections=1", "--data.patience_seconds=1", "--checkpoint.every=1 steps"),
        *("--evaluate.samples=1", "--evaluate.batch=1", "--log.audit=true"),
    ],
)
def test_what_changes_speed_alone_leaves_the_identity(load: Load, override: str) -> None:
    assert load(override) != load()
    assert load(override).identity() == load().identity()


def test_where_a_stream_lies_and_what_is_evaluated_of_it_leaves_the_identity(load: Load) -> None:
    moved = ("--data.stream.train=http://b/train.tar", "--data.stream.test=b.tar", "--data.stream.test_samples=6")
    assert load(*moved, text=STREAM).identity() == load(text=STREAM).identity()


@pytest.mark.parametrize("key", ["train_samples", "shuffle", "bg", "fgbg", "depth", "mask"])
def test_what_is_drawn_from_a_stream_is_in_the_identity(load: Load, key: str) -> None:
    then, now = load(text=STREAM).identity(), load(f"--data.stream.{key}=77", text=STREAM).identity()
    assert list(differences(then, now).values()) == [f"data.stream.{key}: {then[f'data.stream.{key}']} → 77"]


def test_differences_are_said_as_then_and_now(load: Load) -> None:
    then = load().identity()
    now = load("--seed=1", "--stages.1.batch=8", "--optimizer.name=sgd").identity()
    assert differences(then, then) == {}
    lines = ["stages.1.batch: 2 → 8", "optimizer.name: adamw → sgd", "seed: 0 → 1"]
    assert list(differences(then, now).values()) == lines


def test_a_stage_more_or_less_is_a_difference(load: Load) -> None:
    two: dict[str, Any] = load().identity()
    one = load("--stages=[{size: 32, batch: 4}]").identity()
    lines = list(differences(two, one).values())
    assert "stages.1.size: 64 → (absent)" in lines
    assert "stages.1.size: (absent) → 64" in differences(one, two).values()
    assert all(line.startswith("stages.1.") for line in lines)


def test_named_options_of_train_stand_for_keys(load: Load) -> None:
    options = ["--audit", "--cache-dir", "/scratch", "--cache-size", "5GB", "--data.workers", "3"]
    arguments, overrides = build_parser().parse_known_args(["train", "some.yaml", *options])
    config = load(*overrides, *named_overrides(arguments))
    assert config.log.audit
    assert config.data.cache_dir == Path("/scratch")
    assert config.data.cache_size == 5 * 10**9
    assert config.data.workers == 3
    assert named_overrides(build_parser().parse_args(["train", "some.yaml"])) == []


@pytest.mark.parametrize("size", ["lots", "0", "-5GB"])
def test_a_cache_size_that_is_none_is_refused(load: Load, size: str) -> None:
    assert "data.cache_size: " in message(load, f"--data.cache_size={size}")
