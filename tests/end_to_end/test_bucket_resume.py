"""A run whose machine is gone with all that was on it goes on from the copies of its checkpoints behind a URL."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from dtrain.checkpoint import checkpoint_name
from dtrain.run_folder import RunFolder

from ..servers import point_to_s3, s3_server
from .conftest import STEPS, TOTAL_STEPS, Run
from .lean import Lean, all_gone, curve, trainers

PLACE = "runs/one"


def test_from_machine_to_machine_and_back_through_nothing_but_the_bucket(
    run: Run, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as address:
        point_to_s3(address, monkeypatch)
        bucket = S3FileSystem()
        bucket.mkdir("runs")
        to_bucket = ("--checkpoint.url", f"s3://{PLACE}")

        first = Lean(run.folder, run.shards, undisturbed, to_bucket)
        launched = first.launch()
        first.wait_for_step(launched, 2 * STEPS + 2)
        processes = trainers(launched)
        launched.process.send_signal(signal.SIGTERM)
        assert all_gone(processes)
        launched.finish()
        assert first.status()["state"] == "preempted"
        newest, stopped_at = first.checkpoints()[-1], first.last_step()
        assert newest == f"step-{stopped_at:08d}"
        assert first.events("checkpoint")[-1]["global_step"] == stopped_at
        left = first.folder.rename(tmp_path / "left behind")
        bucket.copy(f"{PLACE}/{newest}/state.json", f"{PLACE}/step-{TOTAL_STEPS:08d}/state.json")

        shards = Path(shutil.copytree(run.shards, tmp_path / "elsewhere" / "shards"))
        second = Lean(tmp_path / "elsewhere" / "run", shards, undisturbed, to_bucket)
        again = second.launch().succeed()
        assert f"resumes from {newest}" in again.output
        (resume,) = second.events("resume")
        assert (resume["global_step"], resume["repeated_steps"]) == (stopped_at, 0)
        assert second.final() == undisturbed.final()
        for name in ("train/loss", "test/mask_iou"):
            assert curve(second, name) == curve(undisturbed, name)
        bucket.invalidate_cache()
        kept = {Path(path).parent.name for path in bucket.find(PLACE) if path.endswith("/files.json")}
        assert checkpoint_name(TOTAL_STEPS) in kept, "the last one; one before may have made room for a newer one"
        stage_end = checkpoint_name(2 * STEPS)
        assert stage_end in kept, "the end of the first stage, which the second machine never had"
        assert len(kept - {stage_end}) <= RunFolder(second.folder).load_config().checkpoint.keep_last

        back = Lean(left, run.shards, undisturbed, to_bucket, logs=tmp_path)
        assert "resumes from step-" in back.launch().succeed().output
        assert back.final() == undisturbed.final()
        for name in ("train/loss", "test/mask_iou"):
            assert curve(back, name) == curve(undisturbed, name), "with all steps that another machine made meanwhile"


def test_checkpoints_that_are_gone_without_a_bucket_end_it(run: Run, undisturbed: Run) -> None:
    """As on a disk that is not mounted. Whether the run is done or not, nothing of it is forgotten."""
    run = Lean(run.folder, run.shards, undisturbed)
    shutil.copytree(undisturbed.folder, run.folder)
    elsewhere = (run.folder / "checkpoints").rename(run.folder.with_name("elsewhere"))
    for state in ("done", "running"):
        (run.folder / "status.json").write_text(json.dumps({"state": state}))
        refused = run.launch_alone()
        assert refused.finish() != 0
        assert f"{run.folder / 'checkpoints'}: holds no checkpoint, but " in refused.output
    elsewhere.rename(run.folder / "checkpoints")
    assert run.final() == undisturbed.final()
    assert curve(run) == curve(undisturbed)
