"""Trainings on shards with images that can't be decoded: gone on with, counted, limited; and one process that fails."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from shard_tools.index import parse_index

from ..servers import free_port, needs_nginx, nginx
from .conftest import BIN, EPOCHS, FEW_LANES, ROOT, TEST_SAMPLES, TOTAL_STEPS, Launched, Run
from .lean import GRACE_SECONDS, Lean, checkpoint_of
from .test_signals import last_shard_of_the_second_process

REPLACE = ("--data.on_bad_sample", "replace")


def spoil(shard: Path, *samples: int) -> list[str]:
    """Overwrite the depth of some samples with zeros; returns their keys."""
    index = parse_index(shard.with_suffix(".idx").read_text(), shard)
    data = bytearray(shard.read_bytes())
    for sample in samples:
        member = next(member for member in index[sample].members if member.extension == "depth.jpg")
        data[member.offset : member.offset + member.size] = bytes(member.size)
    shard.write_bytes(data)
    return [index[sample].key for sample in samples]


@pytest.fixture
def spoiled(tmp_path: Path, shards: Path, undisturbed: Run) -> tuple[Lean, list[str]]:
    """A run on shards of which two training samples and one of the test split can't be decoded, and the two."""
    copy = Path(shutil.copytree(shards, tmp_path / "spoiled"))
    spoil(copy / "test-000001.tar", 4)
    return Lean(tmp_path / "run", copy, undisturbed), spoil(copy / "train-000002.tar", 3, 9)


def state(run: Run) -> dict[str, object]:
    last = run.folder / "checkpoints" / f"step-{TOTAL_STEPS:08d}" / "state.json"
    content: dict[str, object] = json.loads(last.read_text())
    return content


def test_a_run_goes_on_without_them_and_says_so(spoiled: tuple[Lean, list[str]]) -> None:
    run, bad = spoiled
    untouched = Lean(run.folder.with_name("untouched"), run.shards, run.like)
    launched = untouched.launch(*REPLACE).succeed()
    events = untouched.events("bad_sample")
    assert sorted(event["key"] for event in events if event["used"]) == sorted(bad * EPOCHS)
    assert len([event for event in events if event["used"] is None]) == len(untouched.events("evaluate"))
    assert f"sample '{bad[0]}': depth can't be decoded" in launched.output
    assert state(untouched)["bad_samples"] == 2 * EPOCHS
    evaluations = [line for line in untouched.lines("metrics.jsonl") if line["kind"] == "evaluate"]
    assert {line["test_samples"] for line in evaluations} == {TEST_SAMPLES - 1}

    subprocess.run([str(BIN / "dtrain"), "report", str(untouched.folder)], check=True, timeout=120)
    assert f"{len(events)} times, 3 different ones" in (untouched.folder / "report.html").read_text()

    first = run.launch(*REPLACE)
    run.wait_for_step(first, 26)
    first.kill()
    run.launch(*REPLACE).succeed()
    assert run.final() == untouched.final()
    assert state(run)["bad_samples"] == 2 * EPOCHS, "steps that are done again count once"


def test_too_many_stop_the_run_on_every_process(spoiled: tuple[Lean, list[str]]) -> None:
    run, _ = spoiled
    launched = run.launch(*REPLACE, "--data.max_bad_samples", "5")
    assert launched.finish() != 0
    message = "6 samples could not be decoded, more than data.max_bad_samples (5)"
    assert launched.output.count(message) == 1, launched.output
    assert run.status()["state"] == "failed"
    assert message in run.status()["reason"]


@needs_nginx
def test_those_of_a_step_that_is_dropped_do_not_count(run: Run, undisturbed: Run, tmp_path: Path) -> None:
    """One process is told to stop while it waits for data, and the other has its part of the step, with bad samples."""
    copy = Path(shutil.copytree(run.shards, tmp_path / "spoiled"))
    for shard in copy.glob("train-*.tar"):
        samples = len(parse_index(shard.with_suffix(".idx").read_text(), shard))
        spoil(shard, *(sample for sample in range(samples) if sample % 3))
    only_at_the_end = ("--checkpoint.every", "1000 steps")
    options = (*FEW_LANES, *REPLACE, *only_at_the_end, "--data.max_bad_samples", "1000")
    run = Lean(run.folder, copy, undisturbed, options)
    slow, step = last_shard_of_the_second_process(run.shards, stage=0, epoch=0)
    with nginx(undisturbed.shards, tmp_path / "server", f"location = /{slow} {{ limit_rate 1k; }}") as server:
        good = ("--data.manifest", server.url, "--data.cache_dir", str(tmp_path / "cache"))
        nodes = run.launch_ranks((), good)
        run.wait_for_step(nodes[0], step)
        time.sleep(1)
        nodes[1].process.send_signal(signal.SIGTERM)
        for node in nodes:
            assert node.process.wait(GRACE_SECONDS) == 0, node.output
    assert (run.status()["state"], run.status()["global_step"]) == ("preempted", step)

    of_first, of_second = run.lines("audit/rank-0.jsonl"), run.lines("audit/rank-1.jsonl")
    assert (len(of_first), len(of_second)) == (step + 1, step)
    assert of_first[step]["replaced"], "the step that was dropped had some"
    counted = sum(len(line["replaced"]) for line in of_first[:step])
    assert checkpoint_of(run, step).state["bad_samples"] == counted


def test_a_failure_of_one_process_ends_all_and_leaves_nothing_wrong_behind(
    spoiled: tuple[Lean, list[str]], undisturbed: Run
) -> None:
    """The step that one process could not take part in is in no checkpoint and in no log."""
    run, _ = spoiled
    launched = run.launch("--checkpoint.every", "1000 steps")
    assert launched.finish() != 0
    assert launched.output.count("depth can't be decoded") == 1, launched.output
    assert "Traceback" not in launched.output.split("depth can't be decoded")[0]
    failed_at = run.events("failed")[0]["global_step"]
    logged = [line for line in run.lines("metrics.jsonl") if line["kind"] == "train"]
    good = [line for line in undisturbed.lines("metrics.jsonl") if line["kind"] == "train"]
    assert 0 < len(logged) == failed_at
    assert logged == good[: len(logged)]


def test_after_an_evaluation_that_failed_nothing_is_lost(run: Run, undisturbed: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.shards, tmp_path / "copy"))
    shard = copy / "test-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    run = Lean(run.folder, copy, undisturbed)
    launched = run.launch()
    assert launched.finish() != 0
    assert launched.output.count("test-000001.tar: ") == 1, launched.output
    shard.write_bytes(whole)
    again = run.launch().succeed()
    assert "resumes from step-00000020" in again.output
    assert run.final() == undisturbed.final()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [("nowhere", "process 1: nowhere/shards.json: no such file"), ("other", "does not list the same samples")],
)
def test_what_only_one_machine_meets_at_the_start_is_said(
    run: Run, shards: Path, tmp_path: Path, manifest: str, message: str
) -> None:
    """Two launchers, as on two machines, of which the second sees no data or another data set."""
    if manifest == "other":
        other = Path(shutil.copytree(shards, tmp_path / "other"))
        content = json.loads((other / "shards.json").read_text())
        content["splits"]["train"]["shards"].reverse()
        (other / "shards.json").write_text(json.dumps(content))
        manifest = str(other)
    run.launch("--help").finish()  # writes the configuration
    port = free_port()
    launched = []
    for node, place in enumerate((str(shards), manifest)):
        log = tmp_path / f"node-{node}.log"
        command = [
            *(str(BIN / "torchrun"), "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"),
            *("--master-addr=127.0.0.1", f"--master-port={port}", "-m", "--", "dtrain", "train"),
            *(str(run.folder.with_suffix(".yaml")), "--data.manifest", place),
        ]
        with log.open("wb") as file:
            launched.append(Launched(subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT), log))
    for started in launched:
        assert started.finish() != 0
    output = "".join(started.output for started in launched)
    assert output.count(message) == 1, output
