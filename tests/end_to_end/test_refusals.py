"""A run that can't go on says why in status.json, so that nobody starts it again and again; it is none the worse."""

import json
import shutil
from pathlib import Path

from .conftest import STEPS, TOTAL_STEPS, Run
from .lean import Lean

CHANGED = ("--optimizer.weight_decay", "0.5")


def test_what_is_refused_at_the_start_is_in_the_status(run: Run, undisturbed: Run) -> None:
    run = Lean(run.folder, run.shards, undisturbed).cut_back(TOTAL_STEPS - STEPS)
    (run.folder / "status.json").write_text(json.dumps({"state": "preempted", "global_step": TOTAL_STEPS - STEPS}))

    assert run.launch_alone(*CHANGED).finish() == 1
    assert refused(run).startswith(f"{run.folder}: was begun with another configuration (then → now):")
    assert run.launch_alone("--data.manifest", "nowhere").finish() == 1
    assert refused(run).startswith("nowhere/shards.json: no such file; expected the manifest")

    kept = shutil.copytree(run.folder / "checkpoints", run.folder.with_name("kept"))
    for weights in run.folder.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    assert run.launch_alone().finish() == 1
    assert "every checkpoint is damaged" in refused(run)
    shutil.rmtree(run.folder / "checkpoints")
    kept.rename(run.folder / "checkpoints")

    run.train()
    assert run.final() == undisturbed.final()
    assert run.launch_alone(*CHANGED).finish() == 1
    assert run.status()["state"] == "done"


def test_what_one_process_cannot_write_is_said_and_in_the_status(run: Run, undisturbed: Run) -> None:
    run = Lean(run.folder, run.shards, undisturbed).cut_back(TOTAL_STEPS - STEPS)
    blocked = run.folder / "audit" / "rank-1.jsonl"
    blocked.unlink()
    blocked.mkdir()
    launched = run.launch()
    assert launched.finish() != 0
    message = f"process 1: {blocked}: can't be written: Is a directory; mend that, or go on without --audit"
    assert launched.output.count(message) == 1, launched.output
    assert f'File "{Path(__file__).parents[2] / "dtrain"}' not in launched.output, "a traceback of ours"
    assert refused(run) == message


def refused(run: Run) -> str:
    """Why, according to its status, which still says where it stands."""
    status = run.status()
    assert (status["state"], status["global_step"]) == ("failed", TOTAL_STEPS - STEPS)
    return str(status["reason"])
