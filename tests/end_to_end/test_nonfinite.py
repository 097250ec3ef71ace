"""Steps whose loss or gradient is not finite: skipped by all, counted, kept on file; too many of them end the run."""

import json
import shutil

import torch

from .conftest import STEPS, TOTAL_STEPS, Run
from .lean import Lean, checkpoint_of

ONE_STAGE = ("--stages", f"[{{size: 16, batch: 4, epochs: {TOTAL_STEPS // 30}}}]")

STANDS_STILL = ("--optimizer.name", "sgd", "--optimizer.learning_rate", "1e-30", "--max_nonfinite_steps", "1000")
ABOUT_HALF_OVERFLOW = ("--loss.scale", "2.16e18")
"""The square of the gradient's norm is about the largest number in float32."""

SAVE_OFTEN = ("--checkpoint.every", "4 steps")
KEEP_ALL = ("--checkpoint.keep_last", "1000")


def test_skipped_steps_leave_no_trace_but_in_the_log_also_after_a_resume(run: Run, undisturbed: Run) -> None:
    options = (*ONE_STAGE, *STANDS_STILL, *ABOUT_HALF_OVERFLOW, *SAVE_OFTEN, *KEEP_ALL)
    Lean(run.folder, run.shards, undisturbed, options).train()

    steps = [line for line in run.lines("metrics.jsonl") if line["kind"] != "evaluate"]
    assert [line["global_step"] for line in steps] == list(range(1, TOTAL_STEPS + 1))
    skipped = [line["global_step"] for line in steps if line["kind"] == "skipped"]
    assert 0 < len(skipped) < TOTAL_STEPS
    assert [event["global_step"] for event in run.events("nonfinite")] == skipped
    assert [event["count"] for event in run.events("nonfinite")] == list(range(1, len(skipped) + 1))
    assert sorted(path.name for path in (run.folder / "nonfinite").iterdir()) == [
        f"step-{step:08d}.json" for step in skipped
    ]
    end = checkpoint_of(run, TOTAL_STEPS)
    for name, tensor in end.weights.items():
        assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name
        if name.endswith("num_batches_tracked"):
            assert tensor == TOTAL_STEPS - len(skipped), "BatchNorm has seen the steps that count, and no other"
    assert all(torch.isfinite(tensor).all() for tensor in end.optimizer.values())
    assert end.state["nonfinite_steps"] == len(skipped)

    saved = [event["global_step"] for event in run.events("checkpoint")]
    assert set(saved) > {30, 60}, "within epochs, too"
    middle = next(step for step in saved if skipped[0] < step < skipped[-1])
    again = Lean(run.folder.with_name("again"), run.shards, run, options).cut_back(middle)
    again.train()
    assert again.events("resume")[0]["global_step"] == middle
    assert again.final() == run.final()
    assert checkpoint_of(again, TOTAL_STEPS).state["nonfinite_steps"] == len(skipped)


def test_a_change_is_refused_and_accepted_and_too_many_such_steps_end_the_run(run: Run, undisturbed: Run) -> None:
    last = TOTAL_STEPS - STEPS
    run = Lean(run.folder, run.shards, undisturbed, ("--loss.scale", "1e39", "--max_nonfinite_steps", "2"))
    run.cut_back(last)
    before = run.folder.with_name("before")
    shutil.copytree(run.folder / "checkpoints", before)

    refused = run.launch_alone()
    assert refused.finish() == 1
    assert f"{run.folder}: was begun with another configuration (then → now):\n  loss.scale: 1.0 → 1e+39\n" in (
        refused.output
    )
    assert "add --accept-change loss.scale" in refused.output

    accepted = run.launch("--accept-change", "loss.scale")
    assert accepted.finish() != 0
    assert "goes on with another configuration (then → now): loss.scale: 1.0 → 1e+39" in accepted.output
    assert run.events("resume")[-1]["changed"] == ["loss.scale: 1.0 → 1e+39"]
    message = (
        "3 steps had a loss or gradient that is not finite, more than max_nonfinite_steps (2), "
        f"the last one step {last + 3}"
    )
    assert accepted.output.count(message) == 1
    assert run.status()["state"] == "failed"
    assert message in run.status()["reason"]
    kept = [json.loads(path.read_text()) for path in sorted((run.folder / "nonfinite").iterdir())]
    assert [content["global_step"] for content in kept] == [last + 1, last + 2, last + 3]
    for content in kept:
        place = (content["stage"], content["epoch"], content["step"] - 1)
        of_first, of_second = map(set, content["keys_by_process"])
        assert of_first | of_second == undisturbed.consumed()[place]
        assert content["loss"] == "inf"
    assert run.checkpoints() == sorted(path.name for path in before.iterdir())
    for path in before.rglob("*.safetensors"):
        assert (run.folder / "checkpoints" / path.relative_to(before)).read_bytes() == path.read_bytes()
