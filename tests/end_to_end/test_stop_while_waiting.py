"""SIGTERM to a training that waits for a slow server: it stops at once, and loses nothing."""

import signal
import time
from pathlib import Path

from ..servers import needs_nginx, nginx
from .conftest import Run

GRACE_SECONDS = 30


@needs_nginx
def test_it_saves_the_step_it_stands_at_and_goes_on_from_there(run: Run, shards: Path, tmp_path: Path) -> None:
    """The first shard alone would take a minute."""
    options = ("--data.max_lanes", "1", "--cache-dir", str(tmp_path / "cache"), "--cache-size", "1GB")
    with nginx(shards, tmp_path / "slow", "limit_rate 2k;") as slow:
        launched = run.launch("--data.manifest", slow.url, *options)
        deadline = time.monotonic() + 120
        while not run.events("start") and time.monotonic() < deadline:
            assert launched.process.poll() is None, launched.output
            time.sleep(0.05)
        time.sleep(3)
        asked = time.monotonic()
        launched.process.send_signal(signal.SIGTERM)
        launched.finish()
        assert time.monotonic() - asked < GRACE_SECONDS
        assert run.status()["state"] == "preempted", launched.output
        stopped_at = run.status()["global_step"]
    with nginx(shards, tmp_path / "fast") as fast:
        again = run.launch("--data.manifest", fast.url, *options).succeed()
    assert f"global step {stopped_at} of" in again.output
    assert len(run.consumed()) == 60
