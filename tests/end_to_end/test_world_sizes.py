"""A run that goes on with other numbers of processes, again and again: each sample once, in the same steps."""

import json
import signal
import subprocess
from typing import Any

import pytest

from .conftest import BIN, EPOCHS, STEPS, TOTAL_STEPS, TRAIN_SAMPLES, Run
from .lean import Lean, all_gone, trainers

SIZES = [(2, 2 * STEPS + 1), (8, 3), (4, 3), (3, 3)]
"""How many processes, for how many steps; the first ones to behind an evaluation."""

KEEP = ("--checkpoint.keep_last", "1", "--checkpoint.keep_best", "1", "--checkpoint.best_metric", "depth_gradient")
SAVE_OFTEN = ("--checkpoint.every", "0.0005 minutes")

GROUPS_OF_6, GROUPS_OF_4 = ("--max_micro_batch", "6"), ("--max_micro_batch", "4")


def test_from_any_number_of_processes_to_any_other(run: Run, undisturbed: Run) -> None:
    run = Lean(run.folder, run.shards, undisturbed, ("--data.workers", "0", *KEEP, *SAVE_OFTEN))
    for processes, steps in SIZES:
        launched = run.launch(processes=processes)
        run.wait_for_step(launched, run.last_step() + steps)
        ranks = trainers(launched)
        assert len(ranks) == processes
        launched.process.send_signal(signal.SIGTERM)
        assert all_gone(ranks)
        launched.finish()
        assert run.status()["state"] == "preempted"
        assert run.status()["global_step"] == run.last_step()
    run.train(processes=1)

    resumes = run.events("resume")
    assert [event["processes"] for event in resumes] == [8, 4, 3, 1]
    assert [event["written"]["processes"] for event in resumes] == [2, 8, 4, 3]
    assert not any(event["repeated_steps"] for event in resumes)
    lines = run.lines("metrics.jsonl")
    assert [line["global_step"] for line in lines if line["kind"] == "train"] == list(range(1, TOTAL_STEPS + 1))
    places = ("kind", "stage", "epoch", "step", "samples")
    assert [[line[name] for name in places] for line in lines] == [
        [line[name] for name in places] for line in undisturbed.lines("metrics.jsonl")
    ]
    assert run.consumed() == undisturbed.consumed()
    proved = audit(run)
    assert proved.returncode == 0, proved.stderr
    assert "with 2, 8, 4, 3, 1 process(es)" in proved.stdout
    assert f"{TOTAL_STEPS} of {TOTAL_STEPS} steps, {TRAIN_SAMPLES * EPOCHS} samples" in proved.stdout
    assert f"{EPOCHS} of {EPOCHS} epochs whole" in proved.stdout

    end = 2 * STEPS
    evaluated = [line for line in lines if line["kind"] == "evaluate" and line["global_step"] > end]
    best = min((line["metrics"]["depth_gradient"], line["global_step"]) for line in evaluated)[1]
    assert best < TOTAL_STEPS, "or there would be nothing to keep"
    kept = (end, best, TOTAL_STEPS)
    assert run.checkpoints() == [f"step-{step:08d}" for step in kept], "of the end of a stage, the best, the newest"
    saved = {event["global_step"] for event in run.events("checkpoint")} - {event["global_step"] for event in resumes}
    assert any(step % STEPS for step in saved), "by the clock, too, not only at the ends of epochs"
    check_forged_evidence_is_named(run)


def check_forged_evidence_is_named(run: Run) -> None:
    """A sample twice in the last step, instead of another."""
    evidence = run.folder / "audit" / "rank-0.jsonl"
    *before, last = evidence.read_text().splitlines()
    forged = json.loads(last)
    forged["keys"][0], taken = forged["keys"][1], forged["keys"][0]
    evidence.write_text("\n".join([*before, json.dumps(forged), ""]))
    disproved = audit(run)
    assert disproved.returncode == 1
    assert f"{evidence}:{len(before) + 1}" in disproved.stderr
    assert taken in disproved.stderr
    assert "Traceback" not in disproved.stderr


def test_two_shares_give_the_same_losses_wherever_they_are_computed(run: Run, undisturbed: Run) -> None:
    """BatchNorm sees the same 6 samples at a time, halves are exact, a sum of two has no order: not a bit differs."""
    run = Lean(run.folder, run.shards, undisturbed, GROUPS_OF_6).cut_back(2 * STEPS).train(processes=1)
    (resume,) = run.events("resume")
    assert (resume["written"]["processes"], resume["processes"]) == (2, 1)
    assert figures(run) == figures(undisturbed)


def test_three_shares_give_the_same_losses_but_for_the_order_of_their_sum(run: Run, undisturbed: Run) -> None:
    """BatchNorm sees the same 4 samples at a time; if it saw others, losses would differ in the third digit.

    They differed by 3e-7 at most, where a float32 has a precision of 1.2e-7. That grows with the number of steps, most
    of all from the first ones, where Adam and BatchNorm magnify what is near zero; so these go on from a later one.
    """
    before = TOTAL_STEPS - STEPS
    curves = []
    for processes in (1, 3):
        folder = run.folder.with_name(f"on-{processes}")
        on = Lean(folder, run.shards, undisturbed, GROUPS_OF_4).cut_back(before).train(processes=processes)
        curves.append([step["loss"] for step in figures(on)[before:]])
    assert len(curves[0]) == STEPS
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def audit(run: Run) -> "subprocess.CompletedProcess[str]":
    command = [str(BIN / "dtrain"), "audit", str(run.folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def figures(run: Run) -> list[dict[str, Any]]:
    """What was logged of each training step: places, losses, gradient norm, learning rate."""
    return [line for line in run.lines("metrics.jsonl") if line["kind"] == "train"]
