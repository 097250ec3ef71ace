"""The benchmark of the data plane runs in all its parts; how fast anything is, is not asserted here."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from bench.http_server import serving

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: object, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)


def test_every_part_of_the_benchmark_gives_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    done = run("bench.data", "--quick", "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())
    assert all(isinstance(value, int | float) for value in figures.values())

    sizes = ("", "_128", "_64", "_32")
    ratios = {f"ratio_ceiling{kind}{size}" for kind in ("", "_processes") for size in sizes}
    assert ratios | {"ratio_writeup", "ratio_webdataset"} <= figures.keys()
    rates = {"write-up, 2 workers", 'webdataset decode("pil"), 2 workers', "decoder alone, 64"}
    assert (
        rates
        | {"ours, 256, 2 workers", "ours, 32, 1 worker, no background cache", "ours, 64, 2 workers that are threads"}
        <= figures.keys()
    )
    assert all(f"{name:44}" in done.stdout for name in rates), "the table has them too"
    cores = min(2, len(os.sched_getaffinity(0)))
    ceiling = figures["decoder alone, 128"] * cores
    assert figures["ratio_ceiling_128"] == pytest.approx(figures["ours, 128, 2 workers"] / ceiling)

    assert figures["resume_half_samples_before"] == figures["resume_99_samples_before"] == 0
    assert figures["resume_half_bytes_read"] >= figures["resume_half_bytes_needed"] > 0
    assert {"resume_half_seconds", "resume_99_seconds", "resume_half_seconds_webdataset"} <= figures.keys()
    assert {
        "ratio_process_thread_32",
        "step_overhead",
        "order_microseconds_per_sample",
        "order_billion_seconds",
    } <= figures.keys()
    assert 10 < figures["order_billion_mb"] < 200
    assert figures["loader_memory_mb"] < 250
    assert figures["node_shards"] <= figures["node_shards_opened"] <= figures["node_shards"] + 1
    assert figures["node_shards_unneeded"] == 0
    assert 0 < figures["remote_share"] < 1.1
    assert figures["remote_fetched"] >= 1


def test_a_part_that_is_not_there_is_named() -> None:
    done = run("bench.data", "--only", "table,speed")
    assert done.returncode == 2
    assert "speed: unknown; parts are table, workers, step, resume" in done.stderr


def test_the_decoders_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "decoders.json"
    done = run("bench.decoders", "--quick", "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    rates = json.loads(path.read_text())
    assert {"simplejpeg, RGB, 1/1, 1 thread", "Pillow, gray, 1/8, 2 threads"} <= rates.keys()
    assert all(rate > 0 for rate in rates.values())


def test_the_server_answers_ranges_of_files_in_its_folder(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "a.tar").write_bytes(content)
    with serving(tmp_path, bytes_per_second=len(content) / 2) as server:
        request = urllib.request.Request(f"{server.url}/a.tar", headers={"Range": "bytes=1000-1999"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(content)}"
            assert answer.read() == content[1000:2000]
        with urllib.request.urlopen(f"{server.url}/a.tar", timeout=30) as answer:
            assert answer.read() == content
        assert server.sent() == len(content) + 1000
        for outside in ("b.tar", "../a.tar", "../../etc/hostname"):
            with pytest.raises(HTTPError, match="404"):
                urllib.request.urlopen(f"{server.url}/{outside}", timeout=30)
