"""A training that is stopped and goes on is one run at each tracker, with every step once. The packages are real.

All that are installed follow the same training. The development extra brings W&B alone; the others' tests skip.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.training import Training
from dtrain.config import Config
from dtrain.evaluate import evaluate_run
from dtrain.points import read_steps
from dtrain.trackers import TRACKERS, require_installed
from shard_tools.errors import UserError

from .conftest import Shards
from .trained_runs import make_run, save_constant

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 200.0

Curves = Mapping[str, list[tuple[int, float]]]
"""Of each curve its points: (step, value)."""


class Trained(Training):
    """A run that every tracker has followed."""

    @property
    def points(self) -> Curves:
        """What the trackers should have, by metrics.jsonl."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for points in read_steps(self.folder / "metrics.jsonl", 0):
            for name, value in points.figures.items():
                curves.setdefault(name, []).append((points.step, value))
        return curves

    def tracked(self, name: str) -> str:
        """The id of the run at a tracker."""
        return str(json.loads((self.folder / "trackers.json").read_text())[name]["id"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Shards) -> Trained:
    """50 steps, stopped somewhere in the middle by SIGTERM, and gone on with in another working directory."""
    installed = [name for name in TRACKERS if find_spec(name)]
    if not installed:
        pytest.skip(f"none of {', '.join(TRACKERS)} is installed")
    folder = tmp_path_factory.mktemp("tracked")
    run = Trained(folder / "run")
    config = folder / "config.yaml"
    config.write_text(
        f"run: {run.folder}\n"
        f"data: {{manifest: {shards.folder}, workers: 0}}\n"
        "model: {width: 0.0625}\n"
        "stages: [{size: 16, batch: 6, epochs: 10}]\n"
        "evaluate: {every_epochs: 2, batch: 10}\n"
        f"log: {{every_steps: 1, trackers: [tensorboard, {', '.join(installed)}]}}\n"
    )
    first = start(config, folder / "first")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while run.last_step() < 12:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_SECONDS) == 0
    assert run.status()["state"] == "preempted"
    assert start(config, folder / "second").wait(PATIENCE_SECONDS) == 0
    assert run.status()["state"] == "done"
    return run


def start(config: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a training in a working directory of its own, with trackers that need no server."""
    folder.mkdir()
    place = {"WANDB_MODE": "offline", "CLEARML_OFFLINE_MODE": "1", "CLEARML_CACHE_DIR": str(config.parent / "clearml")}
    variables = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dtrain", "train", str(config)],
            cwd=folder,
            env={**variables, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def check(curves: Curves, trained: Trained) -> None:
    """Every step of every curve must be there once, in order, with its value."""
    assert curves.keys() == trained.points.keys()
    for name, points in trained.points.items():
        assert [step for step, _ in curves[name]] == [step for step, _ in points], name
    assert [value for _, value in curves["train/loss"]] == pytest.approx(
        [value for _, value in trained.points["train/loss"]]
    )
    assert len(curves["train/loss"]) == trained.last_step() == 50
    assert len(curves["test/mask_iou"]) == 5


def test_the_working_directory_stays_empty(trained: Trained) -> None:
    for name in ("first", "second"):
        assert not [*(trained.folder.parent / name).iterdir()]
    assert "may lack" not in (trained.folder.parent / "second.log").read_text()


def test_wandb(trained: Trained) -> None:
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    begun: list[str] = []
    pictures: list[int] = []
    hyperparameters = 0
    curves: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(trained.folder.glob("wandb/offline-run-*/*.wandb")):
        for content in wandb_records(file.read_bytes()):
            record = protocol.Record.FromString(content)
            if record.HasField("run"):
                begun.append(record.run.run_id)
            hyperparameters += len(record.config.update)
            for item in record.history.item:
                name, *rest = [item.key] if item.key else item.nested_key
                if [name, *rest] == ["test/panel", "_type"]:
                    pictures.append(record.history.step.num)
                elif not rest and not name.startswith("_"):
                    curves.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))

    assert begun == [trained.tracked("wandb")] * 2, "two attempts at one run"
    assert pictures == [10, 20, 30, 40, 50]
    assert hyperparameters > 20
    check(curves, trained)


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes."""
    at, whole, block, header = 7, b"", 32768, 7
    while at + header <= len(data):
        if (left := block - at % block) < header:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        at += header
        whole += data[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_mlflow(trained: Trained) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow takes 510 MB and 88 s to install, so no test brings it")
    client = mlflow.MlflowClient(f"sqlite:///{trained.folder / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'dtrain'")
    (run,) = client.search_runs([experiment.experiment_id])

    assert (run.info.run_id, run.info.status) == (trained.tracked("mlflow"), "FINISHED")
    assert run.data.params["stages.0.batch"] == "6"
    panels = trained.folder / "mlflow" / "artifacts" / run.info.run_id / "artifacts" / "panels"
    assert sorted(path.name for path in panels.iterdir()) == [f"step-{step:08d}.png" for step in (10, 20, 30, 40, 50)]
    check(
        {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        },
        trained,
    )


def test_aim(trained: Trained, tmp_path: Path) -> None:
    aim = pytest.importorskip("aim", reason="aim takes 194 MB and 59 s to install, so no test brings it")
    copy = shutil.copytree(trained.folder / ".aim", tmp_path / ".aim")
    shutil.rmtree(copy / "meta" / "index")  # made by `aim up`; without it, all is read
    repository = aim.Repo(str(tmp_path))
    assert repository.list_all_runs() == [trained.tracked("aim")]
    run = aim.Run(trained.tracked("aim"), repo=repository, read_only=True)

    assert run.experiment == "dtrain"
    assert len(run["hparams"]) > 20
    frames = {metric.name: metric.dataframe().sort_values("step") for metric in run.metrics()}
    check({name: [*zip(frame["step"], frame["value"], strict=True)] for name, frame in frames.items()}, trained)


def test_clearml(trained: Trained) -> None:
    pytest.importorskip("clearml", reason="clearml takes 16 s to install, so no test brings it")
    (session,) = [path for path in (trained.folder.parent / "clearml").glob("**/offline-*") if path.is_dir()]
    assert session.name == trained.tracked("clearml")
    curves: dict[str, list[tuple[int, float]]] = {}
    pictures = []
    for text in (session / "metrics.jsonl").read_text().splitlines():
        for point in json.loads(text):
            if point["type"] == "training_stats_scalar":
                name = f"{point['variant']}/{point['metric']}"
                curves.setdefault(name, []).append((point["iter"], point["value"]))
            else:
                pictures.append(point["iter"])

    assert pictures == [10, 20, 30, 40, 50]
    check(curves, trained)


def test_what_is_not_installed_is_named_with_the_way_out() -> None:
    with pytest.raises(
        UserError, match=r"log\.trackers: none is not installed; pip install 'dtrain\[none\]', or leave"
    ):
        require_installed(["tensorboard", "none"])


def test_only_a_training_needs_its_trackers(make_config: Callable[..., Config]) -> None:
    config = make_config("--log.trackers", json.dumps([*TRACKERS]))
    run = make_run(config)
    save_constant(config, 1, depth=0.5, mask=0.5)

    assert evaluate_run(run, worst=0)["depth_mse"] > 0
