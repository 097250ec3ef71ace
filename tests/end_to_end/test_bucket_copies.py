"""A bucket that does not answer: a run that is told to stop leaves without its copy, which is made up for later."""

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from s3fs import S3FileSystem

from dtrain.checkpoint import checkpoint_name

from ..servers import point_to_s3, s3_server
from .conftest import STEPS, TOTAL_STEPS, Launched, Run
from .lean import GRACE_SECONDS, Lean, wait_until

PLACE = "runs/one"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3FileSystem, psutil.Process]]:
    """An S3 server with a place for runs, and its process."""
    with s3_server() as address:
        point_to_s3(address, monkeypatch)
        bucket = S3FileSystem()
        bucket.mkdir("runs")
        (server,) = [each for each in psutil.Process().children() if "moto.server" in each.cmdline()]
        yield bucket, server
        server.resume()


def stop(launched: Launched, lean: Lean) -> int:
    """Tell it to stop, which it has to do without its copy; the step that it stands at."""
    asked = time.monotonic()
    os.kill(launched.process.pid, signal.SIGTERM)
    launched.finish()
    assert time.monotonic() - asked < GRACE_SECONDS
    status = lean.status()
    step = int(status["global_step"])
    assert status["state"] == "preempted", launched.output
    assert f"the copy of step {step} in s3://{PLACE} is not finished" in status["reason"]
    assert lean.checkpoints()[-1] == checkpoint_name(step)
    return step


def test_a_stop_does_not_wait_for_a_bucket_that_hangs(
    run: Run, undisturbed: Run, bucket: tuple[S3FileSystem, psutil.Process]
) -> None:
    """In the middle of the run, and when all steps are done and only the last copy is not."""
    there, server = bucket
    lean = Lean(run.folder, run.shards, undisturbed, ("--checkpoint.url", f"s3://{PLACE}"))
    launched = lean.launch_alone()
    lean.wait_for_step(launched, STEPS + 2)
    server.suspend()
    stopped_at = stop(launched, lean)
    server.resume()

    short = ("--stages.1.epochs", "1", "--accept-change", "stages.1.epochs")
    again = lean.launch_alone(*short)
    wait_until(lambda: lean.last_step() > stopped_at, again)
    assert f"resumes from {checkpoint_name(stopped_at)}" in again.output
    server.suspend()
    wait_until(lambda: checkpoint_name(3 * STEPS) in lean.checkpoints(), again)
    time.sleep(1)
    assert stop(again, lean) == 3 * STEPS
    server.resume()

    lean.launch_alone(*short).succeed()
    assert lean.status()["state"] == "done"
    whole = {name for name in lean.checkpoints() if there.exists(f"{PLACE}/{name}/files.json")}
    assert whole >= {checkpoint_name(2 * STEPS), checkpoint_name(3 * STEPS)}, "the ends of both stages"


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
