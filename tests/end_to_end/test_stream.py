"""Training on compressed tars, which can't be indexed, with the same trainer, and what a user does with such a run."""

import gzip
import json
import signal
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from .conftest import BIN, ROOT, STEPS, TEST_SAMPLES, TRAIN_SAMPLES, Run


@pytest.fixture
def tars(tmp_path: Path, shards: Path) -> Path:
    """The tars of the shards, compressed, without index and manifest."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for tar in shards.glob("*.tar"):
        (folder / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes(), 1))
    return folder


def options(tars: Path) -> list[str]:
    """The stream, and two epochs of each stage."""
    stream = {
        "train": f"{tars}/train-{{000000..000007}}.tar.gz",
        "test": f"{tars}/test-{{000000..000002}}.tar.gz",
        "train_samples": TRAIN_SAMPLES,
        "test_samples": TEST_SAMPLES,
        "shuffle": 50,
    }
    data = {"loader": "webdataset", "workers": 1, "stream": stream}
    return ["--stages.1.epochs", "2", "--data", json.dumps(data)]


def train_keys(tars: Path) -> set[str]:
    found = set()
    for path in tars.glob("train-*.tar.gz"):
        with tarfile.open(path) as tar:
            found |= {name.partition(".")[0] for name in tar.getnames()}
    return found


def dtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "dtrain"), *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


def succeed(*arguments: str) -> None:
    result = dtrain(*arguments)
    assert result.returncode == 0, result.stderr


def test_two_processes_train_on_it_through_a_preemption_and_a_move(run: Run, tars: Path) -> None:
    launched = run.launch(*options(tars))
    run.wait_for_step(launched, 13)
    launched.process.send_signal(signal.SIGTERM)
    launched.finish()
    assert run.status()["state"] == "preempted", launched.output
    tars = tars.rename(tars.with_name("moved"))
    run.launch(*options(tars)).succeed()
    assert run.status()["state"] == "done"

    lines = run.lines("metrics.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 4 * STEPS
    assert sum(losses[-10:]) < sum(losses[:10])
    evaluations = [line for line in lines if line["kind"] == "evaluate"]
    assert {line["test_samples"] for line in evaluations} == {TEST_SAMPLES}
    by_rank = [[line["keys"] for line in run.lines(f"audit/rank-{rank}.jsonl")] for rank in (0, 1)]
    assert len(by_rank[0]) == len(by_rank[1]) == 4 * STEPS
    assert by_rank[0] != by_rank[1]
    assert {key for steps in by_rank for keys in steps for key in keys} <= train_keys(tars)

    folder = str(run.folder)
    succeed("evaluate", folder)
    evaluated = json.loads((run.folder / "evaluation.json").read_text())
    assert evaluated["samples"] == TEST_SAMPLES
    assert evaluated["metrics"] == pytest.approx(evaluations[-1]["metrics"], rel=1e-5), "by one process as by two"

    succeed("evaluate", folder, "--split", "train")
    streamed = json.loads((run.folder / "evaluation.json").read_text())
    succeed("report", folder)
    assert "<svg" in (run.folder / "report.html").read_text()
    image, out = run.folder.parent / "image.png", run.folder.parent / "predicted"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image)
    succeed("predict", folder, "--bg", str(image), "--fgbg", str(image), "--out", str(out))
    assert (out / "image_depth.png").is_file()
    audit = dtrain("audit", folder)
    assert audit.returncode == 1
    assert "data.loader webdataset, which has no fixed order to be proved" in audit.stderr

    config = run.folder / "config.yaml"
    indexed = yaml.safe_load(config.read_text()) | {"data": {"manifest": str(run.shards)}}
    config.write_text(yaml.safe_dump(indexed))
    succeed("evaluate", folder, "--split", "train")
    read = json.loads((run.folder / "evaluation.json").read_text())
    assert streamed["samples"] == read["samples"] == TRAIN_SAMPLES
    assert streamed["metrics"] == pytest.approx(read["metrics"], rel=1e-5), "each sample once, as from the shards"


def test_a_tar_that_was_cut_ends_both_processes_with_one_message(run: Run, tars: Path) -> None:
    path = tars / "train-000005.tar.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    launched = run.launch(*options(tars))
    assert launched.finish() != 0
    message = f"{path}: can't be read: Compressed file ended"
    assert launched.output.count(message) == 1, launched.output
    assert run.status()["state"] == "failed"
    assert message in run.status()["reason"]
