"""Tuples per second from loose files to shards: ours, GNU tar, and webdataset's ShardWriter; and our memory.

All pack the same tuples in the same order, page cache warm, from one disk to the same disk, in turns within one run;
what counts are the ratios. GNU tar makes one archive of the same list of files, without hash, index or fsync.
ShardWriter is the plain loop of its documentation, on some of the tuples, as its rate does not depend on their number.

    python -m bench.pack --json pack.json
    python -m bench.pack --source photos128 --tuples 400000 --memory --json pack.json
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import webdataset

from bench.big_tree import make_big_tree
from bench.dataset import FOLDER, sample_tree
from shard_tools.components import COMPONENTS
from shard_tools.layouts import SourceTuple
from shard_tools.layouts.nested import scan
from shard_tools.manifest import read_manifest
from shard_tools.permutation import permutation

FOREGROUNDS = 100
SHARD_SIZE = 1000
SHARDWRITER_TUPLES = 10_000
MEMORY_TUPLES = (40_000, 400_000)

Packer = Callable[[Path], int]
"""Packs into a new folder and returns how many tuples it was."""


def ours(tree: Path, workers: int) -> Packer:
    """The whole command: it starts, scans, plans, packs, hashes, indexes, syncs and writes the manifest."""

    def pack(out: Path) -> int:
        subprocess.run(build_command(tree, out, workers), check=True, capture_output=True)
        return read_manifest(out).counts.packed

    return pack


def build_command(tree: Path, out: Path, workers: int) -> list[str]:
    options = ["--shard-size", str(SHARD_SIZE), "--workers", str(workers)]
    return [sys.executable, "-m", "shard_tools", "build", str(tree), str(out), *options]


def gnu_tar(tree: Path, tuples: list[SourceTuple], files: Path) -> Packer:
    """`tar cf` over a list of files; files that are hard links to one another are archived in full, as ours are."""
    files.write_text("\n".join(file for item in tuples for file in item.files) + "\n")

    def pack(out: Path) -> int:
        out.mkdir()
        options = ["--hard-dereference", "--no-recursion", "--directory", str(tree), "--files-from", str(files)]
        subprocess.run(["tar", "--create", "--file", str(out / "all.tar"), *options], check=True)
        return len(tuples)

    return pack


def shard_writer(tree: Path, tuples: list[SourceTuple]) -> Packer:
    """The loop of webdataset's documentation."""

    def pack(out: Path) -> int:
        out.mkdir()
        with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=SHARD_SIZE, verbose=0) as sink:
            for item in tuples:
                sample: dict[str, str | bytes] = {"__key__": item.key, "json": item.metadata.encode()}
                for name, file in zip(COMPONENTS, item.files, strict=True):
                    sample[f"{name}.jpg"] = (tree / file).read_bytes()
                sink.write(sample)
        return len(tuples)

    return pack


@dataclass(frozen=True)
class Rate:
    """Median of the rounds: tuples per second, and megabytes of output per second."""

    tuples: float
    megabytes: float


def measure(contenders: dict[str, Packer], scratch: Path, rounds: int) -> dict[str, Rate]:
    """All take turns; what one leaves to be written to disk is written before the next begins."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, pack in contenders.items():
            out = scratch / "out"
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            began = time.perf_counter()
            count = pack(out)
            seconds = time.perf_counter() - began
            size = sum(path.stat().st_size for path in out.iterdir())
            rates[name].append((count / seconds, size / 1e6 / seconds))
            print(f"  round {number + 1}: {name}: {count / seconds:,.0f} tuples/s", file=sys.stderr, flush=True)
            shutil.rmtree(out)
    return {name: Rate(*map(statistics.median, zip(*values, strict=True))) for name, values in rates.items()}


def peak_memory(tree: Path, scratch: Path, workers: int) -> dict[str, float]:
    """The largest resident set, in MB, of the command and of any of its workers."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    peaks: dict[int, float] = {}
    with subprocess.Popen(
        build_command(tree, out, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        parent = psutil.Process(running.pid)
        while running.poll() is None:
            for process in _family(parent):
                peaks[process.pid] = max(peaks.get(process.pid, 0), _high_water(process.pid))
            time.sleep(0.05)
    assert running.returncode == 0
    shutil.rmtree(out)
    return {
        "parent_mb": peaks[running.pid],
        "worker_mb": max((peak for pid, peak in peaks.items() if pid != running.pid), default=0.0),
    }


def _family(parent: psutil.Process) -> Iterator[psutil.Process]:
    try:
        yield parent
        yield from parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return


def _high_water(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return max((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM:")), default=0.0)


def tree_of(source: Path, folder: Path, tuples: int) -> Path:
    """A tree of about so many tuples below `folder`, linked once and kept."""
    placements = len(list((source / "bg1" / "fg_1" / "overlay").iterdir()))
    backgrounds = max(2, round(tuples / (FOREGROUNDS * placements)))
    tree = folder / f"{source.name}-{backgrounds}x{FOREGROUNDS}"
    make_big_tree(source, tree, backgrounds=backgrounds, foregrounds=FOREGROUNDS)
    return tree


def _peaks(source: Path, folder: Path, tuples: int) -> dict[str, float]:
    return peak_memory(tree_of(source, folder, tuples), folder / "pack-scratch", workers=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a nested tree on this disk (default: rendered rooms of 128 px)")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="for the tree and what is packed, same disk (default: bench/data)"
    )
    parser.add_argument("--tuples", type=int, default=400_000, help="to pack (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all contenders (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="also the memory at 40,000 and at 400,000 tuples")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    source = arguments.source or sample_tree(128)
    tree = tree_of(source, arguments.folder, arguments.tuples)
    scratch = arguments.folder / "pack-scratch"
    scratch.mkdir(exist_ok=True)
    found = scan(tree).tuples
    order = [found[index] for index in permutation(len(found), "bench").tolist()]
    contenders = {
        "GNU tar cf": gnu_tar(tree, order, scratch / "files.txt"),
        "webdataset ShardWriter": shard_writer(tree, order[:SHARDWRITER_TUPLES]),
        "ours, 1 worker": ours(tree, 1),
        "ours, 2 workers": ours(tree, 2),
    }
    contenders["GNU tar cf"](scratch / "warm")  # fills the page cache, and counts for nothing
    shutil.rmtree(scratch / "warm")
    rates = measure(contenders, scratch, arguments.rounds)
    tar, writer, best = (rates[name] for name in ("GNU tar cf", "webdataset ShardWriter", "ours, 2 workers"))
    print(f"{len(found):,} tuples, {sum(map(len, (item.files for item in order))):,} files in the archive")
    print(f"{'':26}{'tuples/s':>10}{'MB/s':>8}{'× ShardWriter':>15}{'× GNU tar':>11}")
    for name, rate in rates.items():
        ratios = f"{rate.tuples / writer.tuples:15.2f}{rate.tuples / tar.tuples:11.2f}"
        print(f"{name:26}{rate.tuples:10,.0f}{rate.megabytes:8.0f}{ratios}")
    figures: dict[str, object] = {
        "tuples": len(found),
        "rates": {name: vars(rate) for name, rate in rates.items()},
        "ratio_webdataset": best.tuples / writer.tuples,
        "ratio_tar": best.tuples / tar.tuples,
    }
    if arguments.memory:
        memory = {str(count): _peaks(source, arguments.folder, count) for count in MEMORY_TUPLES}
        figures["memory"] = memory
        for name, peaks in memory.items():
            print(f"{int(name):>9,} tuples: parent {peaks['parent_mb']:.0f} MB, worker {peaks['worker_mb']:.0f} MB")
    shutil.rmtree(scratch)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
