"""What the order itself costs: seconds and memory of the arithmetic, without any reading."""

import time

from bench.dataset import Workload
from bench.fresh import call_fresh, resident_mb
from bench.turns import Figures
from dtrain.data.order import EpochOrder

BATCH = 64


def measure(workload: Workload) -> Figures:
    """Time for each sample of an epoch; time and memory to plan a very large one and to go to its middle."""
    epoch = call_fresh(whole_epoch, shards=400, length=100 if workload.quick else 1_000)
    billion = call_fresh(middle, shards=100_000, length=10_000)
    print(f"order: {epoch['microseconds']:.2f} µs a sample, over an epoch of {epoch['samples']:,} in 400 shards")
    print(
        f"order of {billion['samples']:,} samples in 100,000 shards: planned, and at its middle, in "
        f"{billion['seconds']:.2f} s with {billion['megabytes']:.0f} MB, "
        f"{billion['before_mb']:.0f} of them the interpreter's"
    )
    return {
        "order_microseconds_per_sample": epoch["microseconds"],
        "order_billion_seconds": billion["seconds"],
        "order_billion_mb": billion["megabytes"],
    }


def whole_epoch(shards: int, length: int) -> Figures:
    """Microseconds a sample to find all batches of an epoch."""
    began = time.perf_counter()
    order = EpochOrder([length] * shards, seed=0, stage=0, epoch=0, global_batch=BATCH)
    samples = sum(len(refs) for refs in order.reading(0, [range(BATCH)]).batches)
    return {"samples": samples, "microseconds": (time.perf_counter() - began) / samples * 1e6}


def middle(shards: int, length: int) -> Figures:
    """Seconds from nothing to the batch in the middle of an epoch, and the largest resident set of this process."""
    before = resident_mb()
    lengths = [length] * shards
    began = time.perf_counter()
    order = EpochOrder(lengths, seed=0, stage=0, epoch=0, global_batch=BATCH)
    next(order.reading(order.steps // 2, [range(BATCH)]).batches)
    seconds = time.perf_counter() - began
    return {"samples": order.samples, "seconds": seconds, "before_mb": before, "megabytes": resident_mb("VmHWM")}
