"""SIGTERM to a training that waits for a slow server: it stops at once, and loses nothing."""

import signal
import time
from pathlib import Path

from ..servers import needs_nginx, nginx
from .conftest import STEPS, Run
from .lean import GRACE_SECONDS, Lean, wait_until


@needs_nginx
def test_it_stands_at_the_step_it_came_to_and_goes_on_from_there(
    run: Run, undisturbed: Run, shards: Path, tmp_path: Path
) -> None:
    """From the slow server the first shard alone would take a minute."""
    run = Lean(run.folder, run.shards, undisturbed)
    with nginx(shards, tmp_path / "fast") as fast:
        begun = run.launch_alone("--data.manifest", fast.url, *cached(tmp_path / "first"))
        run.wait_for_step(begun, STEPS + 2)
        begun.process.send_signal(signal.SIGTERM)
        begun.finish()
    came_to = run.status()["global_step"]
    assert came_to >= STEPS + 2
    with nginx(shards, tmp_path / "slow", "limit_rate 2k;") as slow:
        waits = run.launch_alone("--data.manifest", slow.url, *cached(tmp_path / "second"))
        wait_until(lambda: run.events("resume"), waits)
        time.sleep(3)
        asked = time.monotonic()
        waits.process.send_signal(signal.SIGTERM)
        waits.finish()
        assert time.monotonic() - asked < GRACE_SECONDS
        assert run.status()["state"] == "preempted", waits.output
        assert run.status()["global_step"] == came_to
    with nginx(shards, tmp_path / "again") as fast:
        again = run.launch_alone("--data.manifest", fast.url, *cached(tmp_path / "second")).succeed()
    assert f"global step {came_to} of" in again.output
    assert len(run.consumed()) == 60


def cached(folder: Path) -> tuple[str, ...]:
    """Options: one shard at a time, kept in this folder."""
    return ("--data.max_lanes", "1", "--cache-dir", str(folder), "--cache-size", "1GB")
