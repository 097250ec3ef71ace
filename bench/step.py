"""A training step with the loader beside it, against the same step on batches that are already there."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.dataset import Workload
from bench.fresh import call_fresh
from bench.ours import Ours
from bench.turns import Figures
from dtrain.config import LossConfig
from dtrain.data.loader import HostBatch, to_device
from dtrain.losses import Criterion
from dtrain.model import DepthMaskNet

READY = 4


def measure(workload: Workload) -> Figures:
    """The overhead on CPU, and on a GPU where there is one."""
    quick = workload.quick
    steps, rounds = (2, 1) if quick else (20, workload.rounds)
    cpu = {"device": "cpu", "size": 32, "batch": 64, "width": 1 / 8, "precision": "float32", "workers": 1}
    found = {"": call_fresh(overhead, shards=workload.shards, steps=steps, rounds=rounds, **cpu)}
    if torch.cuda.is_available() and not quick:
        gpu = {"device": "cuda", "size": 256, "batch": 64, "width": 1.0, "precision": "bf16", "workers": 8}
        found["_gpu"] = call_fresh(overhead, shards=workload.shards, steps=steps, rounds=rounds, **gpu)
    figures: Figures = {}
    for name, result in found.items():
        figures[f"step_seconds{name}"] = result["seconds"]
        figures[f"step_overhead{name}"] = result["overhead"]
        figures[f"step_overhead_elsewhere{name}"] = result["elsewhere"]
        print(
            f"training step on {result['device']}, {result['batch']} tuples of {result['size']}×{result['size']}: "
            f"{result['seconds'] * 1e3:.0f} ms on batches that are there; {result['overhead']:+.1%} with the loader "
            f"beside it ({result['workers']} workers of ours, {result['torch_threads']} of torch); "
            f"{result['elsewhere']:+.1%} with that loader in another process, which is what the machine costs"
        )
    return figures


def overhead(
    shards: str,
    *,
    device: str,
    size: int,
    batch: int,
    width: float,
    precision: str,
    workers: int,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Seconds of a step on ready batches, and by what share it is longer on loaded ones; medians of the rounds.

    In each round all take `steps` steps, in turns, with all that a step does: to the device, float, forward, backward,
    AdamW. "elsewhere" is a step on ready batches while another process loads as many: it shares the machine with the
    step, but not the interpreter. On CPU torch has one thread less than there are cores, so that the loader has a core.
    """
    on = torch.device(device)
    if on.type == "cpu":
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) - 1, 1))
    train = training_step(on, width, size, precision)

    def run(batches: Iterator[HostBatch]) -> float:
        synchronize(on)
        began = time.perf_counter()
        for host in islice(batches, steps):
            train(to_device(host, on, size))
        synchronize(on)
        return (time.perf_counter() - began) / steps

    ours = Ours(shards, size=size, workers=workers, device=on)
    with closing(ours), closing(ours.endless(batch)) as loaded, _paced(shards, size, batch, workers) as pace:
        ready = cycle(list(islice(loaded, READY)))
        contenders: tuple[Callable[[], float], ...] = (
            lambda: run(ready),
            lambda: run(loaded),
            lambda: run(map(pace, ready)),
        )
        for contender in contenders:
            contender()
        seconds = [[contender() for contender in contenders] for _ in range(rounds)]
    return {
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else "CPU",
        "size": size,
        "batch": batch,
        "workers": workers,
        "torch_threads": torch.get_num_threads(),
        "seconds": statistics.median(there for there, _, _ in seconds),
        "overhead": statistics.median(beside / there for there, beside, _ in seconds) - 1,
        "elsewhere": statistics.median(elsewhere / there for there, _, elsewhere in seconds) - 1,
    }


@contextmanager
def _paced(shards: str, size: int, batch: int, workers: int) -> Iterator[Callable[[HostBatch], HostBatch]]:
    """A loader in another process, and a function that has it go on by one batch and gives back its argument."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_load_when_told, args=(theirs, shards, size, batch, workers), daemon=True)
    process.start()
    ours.recv()

    def pace(host: HostBatch) -> HostBatch:
        ours.send(None)
        ours.recv()
        return host

    yield pace
    process.terminate()
    process.join()


def _load_when_told(connection: "Connection[None, None]", shards: str, size: int, batch: int, workers: int) -> None:
    for _ in Ours(shards, size=size, workers=workers).endless(batch):
        connection.send(None)
        connection.recv()


def training_step(device: torch.device, width: float, size: int, precision: str) -> Callable[[Any], None]:
    """A function that trains a fresh network on one batch."""
    module = DepthMaskNet(width).to(device)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    criterion = Criterion(LossConfig())

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def step(batch: Any) -> None:
        with autocast():
            prediction = module(batch.images)
        losses = criterion(prediction, depth=batch.depth, mask=batch.mask, image=batch.images[:, 3:])
        torch.autograd.backward(losses[0])
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(function: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after two that do not count."""
    seconds = []
    for number in range(repeats + 2):
        synchronize(device)
        began = time.perf_counter()
        function()
        synchronize(device)
        if number >= 2:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
