"""Runs that are killed, preempted and moved end like the run that was not."""

import os
import shutil
import signal
import time

import psutil

from .conftest import ROOT, STEPS, TOTAL_STEPS, Run
from .lean import Lean, curve


def test_killed_again_and_again_it_ends_with_the_same_bytes(run: Run, undisturbed: Run) -> None:
    before_any_checkpoint = run.launch()
    run.wait_for_step(before_any_checkpoint, 3)
    before_any_checkpoint.kill()
    assert run.status()["state"] == "running"

    run = Lean(run.folder, run.shards, undisturbed)
    after_an_evaluation = run.launch("--checkpoint.every", "1000 steps")
    run.wait_for_step(after_an_evaluation, 2 * STEPS + 3)
    after_an_evaluation.kill()

    within_an_epoch = run.launch()
    run.wait_for_step(within_an_epoch, 3 * STEPS + 6)
    within_an_epoch.kill()
    set_clock_back(run)

    again = run.launch().succeed()
    first, second = run.events("resume")
    assert first["checkpoint"] == f"step-{2 * STEPS:08d}"
    assert first["global_step"] < second["global_step"] <= 3 * STEPS + 6
    assert f"resumes from {second['checkpoint']}" in again.output
    assert len(run.events("start")) == 2, "at first there was nothing to go on from"
    assert len(run.events("evaluate")) == len(undisturbed.events("evaluate")) + 1
    assert run.final() == undisturbed.final()
    assert run.status()["state"] == "done"
    assert curve(run) == curve(undisturbed), "TensorBoard has every step once"
    assert curve(run, "test/mask_iou") == curve(undisturbed, "test/mask_iou"), "and every evaluation"


def set_clock_back(run: Run) -> None:
    """Let all files be of tomorrow; TensorBoard's have the time in their names."""
    tomorrow = time.time() + 24 * 3600
    for path in sorted(run.folder.rglob("*"), reverse=True):
        os.utime(path, (tomorrow, tomorrow))
    for path in (run.folder / "tensorboard").glob("events.*"):
        kind, written, rest = path.name.partition("tfevents")[0], path.name.split(".")[3], path.name.split(".", 4)[4]
        path.rename(path.with_name(f"{kind}tfevents.{int(written) + 24 * 3600}.{rest}"))


def test_three_processes_killed_twice_end_with_the_same_bytes(run: Run, undisturbed: Run) -> None:
    """The first kill is played: the copy of a run is as that run was at its first checkpoint."""
    keep_all = ("--checkpoint.keep_last", "1000")
    untouched = Lean(run.folder.with_name("untouched"), run.shards, undisturbed, keep_all).train(processes=3)
    run = Lean(run.folder, run.shards, untouched).cut_back(7)
    launched = run.launch(processes=3)
    run.wait_for_step(launched, 31)
    launched.kill()
    run.train(processes=3)
    assert run.events("resume")[0]["global_step"] == 7
    assert run.final() == untouched.final()


def test_sigterm_saves_that_very_step_and_leaves_nothing_behind(run: Run, undisturbed: Run) -> None:
    """With workers it reaches every process, as from Slurm and a terminal; those that decode get it first."""
    for workers, step in ((0, 2 * STEPS + 3), (2, 3 * STEPS + 3)):
        launched = run.launch("--data.workers", str(workers), "--checkpoint.every", "1000 steps")
        run.wait_for_step(launched, step)
        processes = launched.tree()
        decoding = [process for process in processes if "decode_process" in str(process.cmdline())]
        assert len(processes) - len(decoding) >= 3
        assert len(decoding) == 2 * workers
        asked = time.monotonic()
        for process in decoding + (processes if workers else processes[:1]):
            process.send_signal(signal.SIGTERM)
        launched.finish()
        assert time.monotonic() - asked < 20, "the aim is 10 on a machine that has nothing else to do"
        assert not [process for process in processes if psutil.pid_exists(process.pid)]
        status = run.status()
        assert status["state"] == "preempted"
        assert status["reason"] == "SIGTERM"
        assert status["global_step"] == run.last_step() < TOTAL_STEPS
        assert run.checkpoints()[-1] == f"step-{status['global_step']:08d}"

    run.train("--data.workers", "2")
    first, second = run.events("resume")
    assert first["global_step"] < second["global_step"] == status["global_step"]
    assert first["repeated_steps"] == second["repeated_steps"] == 0
    assert run.final() == undisturbed.final()


def test_a_lost_decoding_process_is_named(run: Run, undisturbed: Run) -> None:
    run = Lean(run.folder, run.shards, undisturbed)
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


def test_damaged_checkpoints_are_passed_over_and_named(run: Run, undisturbed: Run) -> None:
    run = Lean(run.folder, run.shards, undisturbed)
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
    run = Lean(run.folder, run.shards, undisturbed)
    shutil.copytree(undisturbed.folder, run.folder)
    assert "is done" in run.launch_alone().succeed().output
    assert run.final() == undisturbed.final()

    refused = run.launch_alone("--fresh")
    assert refused.finish() != 0
    assert "holds a finished run, which --fresh would delete" in refused.output
    assert run.final() == undisturbed.final()
