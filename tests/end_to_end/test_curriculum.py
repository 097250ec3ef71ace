"""Stages: going back to one of them, weights from another run, losses at other sizes, and where the time goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import BATCH, ROOT, STEPS, TOTAL_STEPS, Run
from .lean import Lean, checkpoint_of, curve, trainers, wait_until

SECOND_STAGE = 2 * STEPS
"""The step with which the first one ends."""


def test_back_to_a_stage_as_it_was_and_changed(run: Run, undisturbed: Run) -> None:
    """Two processes, as the undisturbed run had."""
    run = Lean(run.folder, run.shards, undisturbed)
    first = run.launch("--checkpoint.keep_last", "1").succeed()
    assert run.final() == undisturbed.final()
    assert run.checkpoints() == [f"step-{step:08d}" for step in (SECOND_STAGE, TOTAL_STEPS)], "ends of stages stay"
    assert "where a step" not in first.output
    assert checkpoint_of(run, TOTAL_STEPS).optimizer["0.step"] == TOTAL_STEPS - SECOND_STAGE, "reset once"

    again = run.launch("--from-stage", "1", "--profile").succeed()
    assert f"resumes from step-{SECOND_STAGE:08d}: stage 0, epoch 1, step {STEPS} of {STEPS}" in again.output
    assert run.final() == undisturbed.final(), "also while it is measured where the time goes"
    assert [step for step, _ in curve(run)] == list(range(1, TOTAL_STEPS + 1)), "no step twice"
    profile = json.loads((run.folder / "profile/stage-1.json").read_text())
    assert sum(profile["phase_seconds"].values()) == pytest.approx(profile["step_seconds"])
    assert {"waiting for data", "network", "losses", "backward", "update"} <= profile["phase_seconds"].keys()
    assert profile["loss_seconds"].keys() == {"depth mse", "depth gradient", "mask bce", "mask dice"}
    assert (run.folder / "profile/trace-stage-1.json.gz").stat().st_size > 1000
    assert "where a step of stage 1 goes (32×32, 6 samples here)" in again.output

    other = ("--stages.1.epochs", "1", "--stages.1.learning_rate", "0.1", "--checkpoint.every", "1000 steps")
    changed = run.launch("--from-stage", "1", *other, max_restarts=1)
    wait_until(lambda: SECOND_STAGE < run.last_step() < SECOND_STAGE + STEPS, changed)
    trainers(changed)[1].kill()
    changed.succeed()
    assert changed.output.count("stages.1.learning_rate: None → 0.1") == 2, "before and after the launcher began again"
    assert changed.output.count("--from-stage 1: the launcher has started this again, so the run goes on") == 1
    assert [event.get("from_stage") for event in run.events("resume")] == [1, 1, None]
    assert (run.status()["state"], run.status()["global_step"]) == ("done", SECOND_STAGE + STEPS)
    kept = SECOND_STAGE + 1
    assert run.lines("metrics.jsonl")[:kept] == undisturbed.lines("metrics.jsonl")[:kept]
    audit = subprocess.run([sys.executable, "-m", "dtrain", "audit", str(run.folder)], cwd=ROOT, check=False)
    assert audit.returncode == 0
    refused = run.launch("--from-stage", "1", "--seed", "5")
    assert refused.finish() != 0
    assert "seed: 0 → 5" in refused.output
    refused = run.launch("--from-stage", "2")
    assert refused.finish() != 0
    assert "--from-stage 2: there are 2 stages, counted from 0" in refused.output


def test_other_beginnings_and_losses_at_other_sizes(run: Run, undisturbed: Run, tmp_path: Path) -> None:
    one = ["--stages", "[{size: 16, batch: 12, steps: 13}]", "--checkpoint.every", "100 steps"]
    source = checkpoint_of(undisturbed, TOTAL_STEPS)

    begun = Lean(tmp_path / "begun", run.shards, undisturbed)
    still = ["--optimizer.learning_rate", "1e-12", "--init_from", str(undisturbed.folder)]
    begun.launch_alone(*one, *still).succeed()
    for name, weights in checkpoint_of(begun, 13).weights.items():
        if "running" not in name and "tracked" not in name:
            assert torch.allclose(weights, source.average[name], atol=1e-6), name
    lines = begun.lines("metrics.jsonl")
    assert [line["samples"] for line in lines if line["kind"] == "train"] == [BATCH * (n + 1) for n in range(13)]

    larger = Lean(tmp_path / "larger", run.shards, undisturbed)
    larger.launch_alone(*one, "--stages.0.loss_size", "32", "--loss.mask.ssim", "1").succeed()
    first, other = larger.lines("metrics.jsonl")[0], undisturbed.lines("metrics.jsonl")[0]
    assert 0 < first["mask_ssim_loss"] <= 2
    assert first["mask_bce"] != other["mask_bce"], "the first step has the same weights and samples"
    assert abs(first["depth_mse"] - other["depth_mse"]) < 0.2 * other["depth_mse"]

    shrink = Lean(tmp_path / "shrink", run.shards, undisturbed)
    shrink.launch_alone(*one, "--model", "shrink").succeed()
    assert len([line for line in shrink.lines("metrics.jsonl") if line["kind"] == "train"]) == 13
