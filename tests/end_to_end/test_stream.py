"""Training on compressed tars, which can't be indexed, with the same trainer: preempted, resumed, evaluated."""

import gzip
import json
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

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
    return [
        *("--stages.1.epochs", "2"),
        *("--data.manifest", "unused", "--data.loader", "webdataset"),
        *("--data.stream.train", f"{tars}/train-{{000000..000007}}.tar.gz"),
        *("--data.stream.test", f"{tars}/test-{{000000..000002}}.tar.gz"),
        *("--data.stream.train_samples", str(TRAIN_SAMPLES), "--data.stream.test_samples", str(TEST_SAMPLES)),
        *("--data.stream.shuffle", "50"),
    ]


def train_keys(tars: Path) -> set[str]:
    found = set()
    for path in tars.glob("train-*.tar.gz"):
        with tarfile.open(path) as tar:
            found |= {name.partition(".")[0] for name in tar.getnames()}
    return found


def test_two_processes_train_on_it_through_a_preemption(run: Run, tars: Path) -> None:
    launched = run.launch(*options(tars))
    run.wait_for_step(launched, 13)
    launched.process.send_signal(signal.SIGTERM)
    launched.finish()
    assert run.status()["state"] == "preempted", launched.output
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

    subprocess.run([str(BIN / "dtrain"), "evaluate", str(run.folder)], check=True, cwd=ROOT, timeout=120)
    evaluated = json.loads((run.folder / "evaluation.json").read_text())
    assert evaluated["samples"] == TEST_SAMPLES
    assert evaluated["metrics"] == pytest.approx(evaluations[-1]["metrics"], rel=1e-5), "by one process as by two"


def test_a_tar_that_was_cut_ends_both_processes_with_one_message(run: Run, tars: Path) -> None:
    path = tars / "train-000005.tar.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    launched = run.launch(*options(tars))
    assert launched.finish() != 0
    message = f"{path}: can't be read: Compressed file ended"
    assert launched.output.count(message) == 1, launched.output
    assert run.status()["state"] == "failed"
    assert message in run.status()["reason"]
