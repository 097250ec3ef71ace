"""A bucket that does not answer: a run that is told to stop leaves without its copy, which is made up for later."""

import os
import signal
import time

import psutil
import pytest
from s3fs import S3FileSystem

from dtrain.checkpoint import checkpoint_name

from ..servers import s3_server
from .conftest import STEPS, TOTAL_STEPS, Run
from .lean import GRACE_SECONDS, Lean

PLACE = "runs/one"


def test_a_stop_does_not_wait_for_a_bucket_that_hangs(
    run: Run, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as address:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        bucket = S3FileSystem()
        bucket.mkdir("runs")
        lean = Lean(run.folder, run.shards, undisturbed, ("--checkpoint.url", f"s3://{PLACE}"))

        launched = lean.launch_alone()
        lean.wait_for_step(launched, STEPS + 2)
        (server,) = [each for each in psutil.Process().children() if "moto.server" in each.cmdline()]
        server.suspend()
        asked = time.monotonic()
        os.kill(launched.process.pid, signal.SIGTERM)
        launched.finish()
        assert time.monotonic() - asked < GRACE_SECONDS
        server.resume()
        status = lean.status()
        stopped_at = status["global_step"]
        assert status["state"] == "preempted", launched.output
        assert f"the copy of step {stopped_at} in s3://{PLACE} is not finished" in status["reason"]
        assert lean.checkpoints()[-1] == checkpoint_name(stopped_at)

        again = lean.launch_alone("--stages.1.epochs", str(1), "--accept-change", "stages.1.epochs").succeed()
        assert f"resumes from {checkpoint_name(stopped_at)}" in again.output
        last = lean.status()["global_step"]
        assert last < TOTAL_STEPS
        whole = {name: bucket.exists(f"{PLACE}/{name}/files.json") for name in lean.checkpoints()}
        assert whole[checkpoint_name(last)]
        assert whole[checkpoint_name(2 * STEPS)], "the end of a stage"


def test_a_copy_that_a_kill_cut_off_is_made_up_for(run: Run, undisturbed: Run) -> None:
    """Killed after its last checkpoint was written here, before its copy was."""
    there = run.folder.with_name("there")
    lean = Lean(run.folder, run.shards, undisturbed, ("--checkpoint.url", f"file://{there}"))
    lean.cut_back(TOTAL_STEPS)
    assert not there.exists()
    again = lean.launch_alone().succeed()
    assert "0 logged steps are done again" in again.output
    assert lean.status()["state"] == "done"
    assert (there / checkpoint_name(TOTAL_STEPS) / "files.json").is_file()
    assert (there / checkpoint_name(2 * STEPS) / "files.json").is_file(), "the end of a stage"
