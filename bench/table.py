"""Tuples per second from disk to batches of 64, of all contenders in one run, and how they stand to one another."""

import os
from collections.abc import Iterator

import torch

from bench.ceiling import Images, SideBySide, decode_all, images_in_memory, side_by_side
from bench.dataset import Workload
from bench.formats import converted, installed
from bench.ours import Ours
from bench.peers import BATCH, DECODERS, webdataset_pil, writeup
from bench.turns import Epoch, Figures, Rate, take_turns

NATIVE_SIZE = 256
SIZES = (256, 128, 64, 32)
WORKERS = (0, 1, 2)
MOST = max(WORKERS)


def measure(workload: Workload) -> Figures:
    """All rates by name, and the ratios that are goals; prints the table.

    torch has one thread, as in DataLoader's workers: with two, whatever else runs on the machine slows a loader without
    workers many times over, since its threads wait for each other at every batch that they put together.
    """
    torch.set_num_threads(1)
    images = images_in_memory(workload.shards)
    cores = min(MOST, len(os.sched_getaffinity(0)))
    with side_by_side(images, cores) as processes:
        ours, others = _ours_beside_decoder(workload, images, processes), _others(workload, len(images))
        rates = take_turns(dict(ours) | dict(others), workload.rounds)
    figures = {name: rate.median for name, rate in rates.items()} | ratios(rates, cores)
    _print(rates, figures, cores)
    return figures


def _ours_beside_decoder(workload: Workload, images: Images, processes: SideBySide) -> Iterator[tuple[str, Epoch]]:
    for size in SIZES:
        yield f"decoder alone, {size}", lambda size=size: decode_all(images, size)  # type: ignore[misc]
        yield f"decoder in processes, {size}", processes.epoch(size)
        for workers in WORKERS:
            for name, megabytes in (("", 64), (", no background cache", 0)):
                loader = Ours(workload.shards, size=size, workers=workers, background_cache_mb=megabytes)
                yield f"{_ours_with(size, workers)}{name}", loader.epochs(BATCH)
        threads = Ours(workload.shards, size=size, workers=MOST, worker_kind="thread")
        yield f"{_ours_with(size, MOST)} that are threads", threads.epochs(BATCH)


def _ours_with(size: int, workers: int) -> str:
    return f"ours, {size}, {workers} worker{'' if workers == 1 else 's'}"


def _others(workload: Workload, samples: int) -> Iterator[tuple[str, Epoch]]:
    for workers in (0, 2):
        yield f"write-up, {workers} workers", writeup(workload.tree, NATIVE_SIZE, workers, samples)
    for workers in (0, 2):
        yield f'webdataset decode("pil"), {workers} workers', webdataset_pil(workload.shards, workers)
    for name, peer in ({} if workload.quick else installed()).items():
        folder = converted(workload.shards, name, peer)
        peer.tidy()
        for decoder in DECODERS:
            for workers in (0, 2):
                yield f"{name}, {decoder}, {workers} workers", peer.epochs(folder, decoder, workers)


def ratios(rates: dict[str, Rate], cores: int) -> Figures:
    """The goals: ours with two workers against the decoder at each size, and at full size against the others."""

    def best(*beginnings: str) -> float:
        return max((rate.median for name, rate in rates.items() if name.startswith(beginnings)), default=0.0)

    found: Figures = {}
    for size in SIZES:
        suffix = "" if size == NATIVE_SIZE else f"_{size}"
        ours = rates[_ours_with(size, MOST)].median
        found[f"ratio_ceiling{suffix}"] = ours / (rates[f"decoder alone, {size}"].median * cores)
        found[f"ratio_ceiling_processes{suffix}"] = ours / rates[f"decoder in processes, {size}"].median
    ours = rates[_ours_with(NATIVE_SIZE, MOST)].median
    found["ratio_writeup"] = ours / best("write-up")
    found["ratio_webdataset"] = ours / best("webdataset")
    if peer := best("Streaming", "litdata"):
        found["ratio_best_peer"] = ours / peer
    return found


def _print(rates: dict[str, Rate], figures: Figures, cores: int) -> None:
    writeup_rate = max(rate.median for name, rate in rates.items() if name.startswith("write-up"))
    print(f"{'':44}{'tuples/s':>10}{'spread':>9}{'× write-up':>12}")
    for name, rate in rates.items():
        print(f"{name:44}{rate.median:10,.0f}{rate.spread:9.0%}{rate.median / writeup_rate:12.2f}")
    print(f"\n{cores} cores; spread: from the slowest round to the fastest. Ours with {MOST} workers, of …")
    for name in (name for name in figures if name.startswith("ratio_")):
        print(f"{name:44}{figures[name]:10.3f}")
