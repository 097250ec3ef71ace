"""Decoding in processes against decoding in threads, side by side and nothing else, at each size."""

import os
import statistics
from contextlib import ExitStack, closing

from bench.dataset import Workload
from bench.ours import Ours
from bench.peers import BATCH
from bench.table import SIZES
from bench.turns import Figures, take_turns

TURNS = 3
"""Of each kind for one round of the other parts: short ones, so that what else the machine does meets both alike."""


def measure(workload: Workload) -> Figures:
    """Tuples per second of as many workers as there are cores, of both kinds, and their ratio, by size."""
    count = len(os.sched_getaffinity(0))
    figures: Figures = {}
    print(f"{count} workers, tuples/s      processes   threads     ratio")
    for size in SIZES:
        with ExitStack() as stack:
            contenders = {}
            for kind in ("process", "thread"):
                loader = stack.enter_context(closing(Ours(workload.shards, size=size, workers=count, worker_kind=kind)))
                contenders[kind] = loader.epochs(BATCH)
            rates = take_turns(contenders, TURNS * workload.rounds)
        process, thread = rates["process"].median, rates["thread"].median
        figures[f"workers_process_{size}"], figures[f"workers_thread_{size}"] = process, thread
        figures[f"ratio_process_thread_{size}"] = process / thread
        print(f"{size:24}{process:15,.0f}{thread:10,.0f}{process / thread:10.2f}")
    figures["ratio_process_thread"] = statistics.geometric_mean(
        figures[f"ratio_process_thread_{size}"] for size in SIZES
    )
    return figures
