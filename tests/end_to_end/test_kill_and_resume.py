"""Runs that are killed, preempted and moved end like the run that was not."""

import shutil
import signal
import time

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .conftest import ROOT, STEPS, TOTAL_STEPS, Run


def curve(run: Run, name: str = "train/loss") -> list[tuple[int, float]]:
    """A curve as TensorBoard shows it."""
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.parametrize("step", [3, 26])
def test_killed_at_any_step_it_ends_with_the_same_bytes(run: Run, undisturbed: Run, step: int) -> None:
    first = run.launch()
    run.wait_for_step(first, step)
    first.kill()
    assert run.status()["state"] == "running"
    again = run.launch().succeed()
    if step >= 7:
        (resume,) = run.events("resume")
        assert 0 < resume["global_step"] <= run.last_step()
        assert f"resumes from {resume['checkpoint']}" in again.output
    assert run.final() == undisturbed.final()
    assert run.status()["state"] == "done"
    assert curve(run) == curve(undisturbed), "TensorBoard has every step once"


def test_an_evaluation_that_is_done_again_is_on_the_curve_once(run: Run, undisturbed: Run) -> None:
    launched = run.launch("--checkpoint.every", "1000 steps")
    run.wait_for_step(launched, 2 * STEPS + 3)
    launched.kill()
    run.train()
    assert run.events("resume")[0]["checkpoint"] == f"step-{2 * STEPS:08d}"
    assert len(run.events("evaluate")) == len(undisturbed.events("evaluate")) + 1
    assert curve(run) == curve(undisturbed)
    assert curve(run, "test/mask_iou") == curve(undisturbed, "test/mask_iou")
    assert run.final() == undisturbed.final()


def test_three_processes_killed_twice_end_with_the_same_bytes(run: Run) -> None:
    untouched = Run(run.folder.with_name("untouched"), run.shards).train(processes=3)
    for step in (9, 31):
        launched = run.launch(processes=3)
        run.wait_for_step(launched, step)
        launched.kill()
    run.train(processes=3)
    assert run.final() == untouched.final()


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_that_very_step_and_leaves_nothing_behind(run: Run, undisturbed: Run, workers: int) -> None:
    """With workers it reaches every process, as from Slurm and a terminal; those that decode get it first."""
    launched = run.launch("--data.workers", str(workers), "--checkpoint.every", "1000 steps")
    run.wait_for_step(launched, 23 + workers)
    processes = launched.tree()
    decoding = [process for process in processes if "decode_process" in str(process.cmdline())]
    assert len(processes) - len(decoding) >= 3
    assert len(decoding) == 2 * workers
    asked = time.monotonic()
    for process in decoding + (processes if workers else processes[:1]):
        process.send_signal(signal.SIGTERM)
    launched.finish()
    assert time.monotonic() - asked < 10
    assert not [process for process in processes if psutil.pid_exists(process.pid)]
    status = run.status()
    assert status["state"] == "preempted"
    assert status["reason"] == "SIGTERM"
    assert status["global_step"] == run.last_step() < TOTAL_STEPS
    assert run.checkpoints()[-1] == f"step-{status['global_step']:08d}"

    run.train("--data.workers", str(workers))
    (resume,) = run.events("resume")
    assert resume["global_step"] == status["global_step"]
    assert resume["repeated_steps"] == 0
    assert run.final() == undisturbed.final()


def test_a_lost_decoding_process_is_named(run: Run) -> None:
    launched = run.launch("--data.workers", "1")
    run.wait_for_step(launched, STEPS + 2)
    victim, _ = [process for process in launched.tree() if "decode_process" in str(process.cmdline())]
    victim.kill()
    assert launched.finish() != 0
    assert "a decoding process was ended by SIGKILL" in launched.output
    assert f'File "{ROOT / "dtrain"}' not in launched.output, "a traceback of ours"


def test_a_process_whose_launcher_is_killed_saves_and_ends(run: Run) -> None:
    launched = run.launch()
    run.wait_for_step(launched, 12)
    ranks = launched.tree()[1:]
    launched.process.kill()
    launched.process.wait()
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert gone
    assert not alive
    assert run.status()["state"] == "preempted"
    assert run.status()["global_step"] == run.last_step()
    assert run.checkpoints()[-1] == f"step-{run.last_step():08d}"


def test_a_lost_process_is_no_failure_of_the_run(run: Run, undisturbed: Run) -> None:
    launched = run.launch()
    run.wait_for_step(launched, STEPS + 2)
    (second,) = [
        process
        for process in launched.tree()
        if process.environ().get("RANK") == "1" and "decode_process" not in str(process.cmdline())
    ]
    second.send_signal(signal.SIGKILL)
    assert launched.finish() != 0
    assert launched.output.count("lost another process") == 1
    assert f'File "{ROOT / "dtrain"}' not in launched.output, "a traceback of ours"
    status = run.status()
    assert status["state"] == "running", "nothing is wrong with the run; the same command goes on with it"
    assert "lost another process" in status["reason"]
    run.train()
    assert run.final() == undisturbed.final()


def test_one_process_goes_on_with_the_samples_that_two_would_have_seen(run: Run, undisturbed: Run) -> None:
    launched = run.launch()
    run.wait_for_step(launched, STEPS + 4)
    launched.process.send_signal(signal.SIGTERM)
    launched.finish()
    run.train(processes=1)
    assert run.events("resume")[0]["processes"] == 1
    assert run.consumed() == undisturbed.consumed()


def test_damaged_checkpoints_are_passed_over_and_named(run: Run, undisturbed: Run) -> None:
    shutil.copytree(undisturbed.folder, run.folder)
    newest, before = sorted((run.folder / "checkpoints").iterdir())[:-3:-1]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    half_written = newest.with_name(".step-00000099.partial")
    shutil.copytree(before, half_written)
    (half_written / "files.json").unlink()

    output = run.launch().succeed().output
    assert f"passed over checkpoint {newest.name}: model.safetensors has" in output
    assert "passed over checkpoint .step-00000099.partial: half-written" in output
    assert f"resumes from {before.name}" in output
    assert run.final() == undisturbed.final()
    assert not list((run.folder / "checkpoints").glob(".*"))


def test_a_finished_run_is_left_alone(run: Run, undisturbed: Run) -> None:
    shutil.copytree(undisturbed.folder, run.folder)
    assert "is done" in run.launch(processes=1).succeed().output
    assert run.final() == undisturbed.final()

    refused = run.launch("--fresh", processes=1)
    assert refused.finish() != 0
    assert "holds a finished run, which --fresh would delete" in refused.output
    assert run.final() == undisturbed.final()
