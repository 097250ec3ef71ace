"""Trainings on shards behind a URL: as on a disk, through a small cache, killed, and with servers that fail."""

import json
import shutil
import time
from collections import Counter
from pathlib import Path

from shard_tools.manifest import read_manifest

from ..servers import needs_nginx, nginx
from .conftest import EPOCHS, ROOT, Run
from .lean import Lean

pytestmark = needs_nginx


def cache_options(folder: Path, size: int) -> tuple[str, ...]:
    return ("--cache-dir", str(folder), "--cache-size", str(size))


def bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_killed_while_streaming_it_ends_with_the_bytes_of_a_run_on_a_disk(
    run: Run, of_few_lanes: Run, shards: Path, tmp_path: Path
) -> None:
    """A cache of about two thirds of the shards, two processes, SIGKILL to all, the same command again."""
    run = Lean(run.folder, shards, of_few_lanes)
    manifest = read_manifest(shards)
    files = [shard for split in manifest.splits.values() for shard in split.files]
    room = sum(shard.bytes for shard in files) * 2 // 3
    cache = tmp_path / "cache"
    with nginx(shards, tmp_path / "server") as server:
        options = ("--data.manifest", server.url, *cache_options(cache, room))
        first = run.launch(*options)
        largest = 0
        while run.last_step() < 26:
            assert first.process.poll() is None, first.output
            largest = max(largest, bytes_in(cache))
            time.sleep(0.01)
        first.kill()
        killed_after = len(server.requests())
        again = run.launch(*options)
        while again.process.poll() is None:
            largest = max(largest, bytes_in(cache))
            time.sleep(0.01)
        assert again.process.returncode == 0, again.output
        assert 0 < largest <= room
        fetched = Counter(request.name for request in server.requests()[:killed_after] if request.name.endswith(".tar"))
    assert set(fetched) <= {shard.file for shard in files}
    assert run.final() == of_few_lanes.final()
    assert run.events("speed")[-1]["fetched_bytes"] >= 0


def test_each_shard_is_downloaded_once_for_all_processes(run: Run, shards: Path, tmp_path: Path) -> None:
    with nginx(shards, tmp_path / "server") as server:
        options = ("--data.manifest", f"{server.url}/shards.json", *cache_options(tmp_path / "cache", 2**30))
        run.train(*options, "--stages.1.epochs", "1", processes=3)
        gets = Counter(request.name for request in server.requests() if request.name.endswith(".tar"))
        assert set(gets.values()) == {1}
        assert set(gets) == {path.name for path in shards.glob("*.tar")}
    assert len(run.consumed()) == 3 * (120 // 12) < EPOCHS * 10


def test_a_shard_with_other_bytes_stops_all_processes_with_one_message(run: Run, shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    shard = copy / "train-000003.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with nginx(copy, tmp_path / "server") as server:
        options = ("--data.manifest", server.url, *cache_options(tmp_path / "cache", 2**30))
        launched = run.launch(*options)
        assert launched.finish() != 0
        (message,) = [line for line in launched.output.splitlines() if line.startswith("dtrain: process ")]
        assert f"{server.url}/train-000003.tar" in message
        assert "SHA-256" in message
        assert 'File "' + str(ROOT / "dtrain") not in launched.output
        assert run.status()["state"] == "failed"


def test_a_cache_too_small_for_one_batch_says_what_would_do(
    run: Run, undisturbed: Run, shards: Path, tmp_path: Path
) -> None:
    with nginx(shards, tmp_path / "server") as server:
        options = ("--data.manifest", server.url, "--cache-dir", str(tmp_path / "cache"))
        launched = Lean(run.folder, shards, undisturbed).launch_alone(*options, "--cache-size", "1kB")
        assert launched.finish() != 0
        assert "data.cache_size: 1,000 bytes are too few" in launched.output
        assert "data.max_lanes" in launched.output
        status = json.loads((run.folder / "status.json").read_text())
        assert status["state"] == "failed"
