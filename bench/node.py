"""Which shards the processes of a node open: eight at once on this machine, each reads its share of one epoch."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.dataset import Workload
from bench.fresh import call_fresh
from bench.ours import Ours
from bench.peers import BATCH
from bench.turns import Figures

WORLD, QUICK_WORLD = 8, 2
SIZE = 8
SAMPLES = 100_000


def measure(workload: Workload) -> Figures:
    """How many shards there are, and how many were opened by all processes together."""
    world, samples = (QUICK_WORLD, 4_000) if workload.quick else (WORLD, SAMPLES)

    def read(rank: int) -> dict[str, Any]:
        return call_fresh(read_share, shards=workload.big_shards, samples=samples, rank=rank, world=world)

    with ThreadPoolExecutor(world) as pool:
        ranks = list(pool.map(read, range(world)))
    opened = [set(rank["opened"]) for rank in ranks]
    together = set.union(*opened)
    unneeded = sum(len(set(rank["opened"]) - set(rank["needed"])) for rank in ranks)
    print(
        f"node of {world} processes, {samples:,} tuples in {len(together)} shards: each opened "
        f"{min(map(len, opened))} to {max(map(len, opened))}, all together {sum(map(len, opened))}, of which "
        f"{sum(map(len, opened)) - len(together)} at a border of two; {unneeded} that its samples are not in"
    )
    return {
        "node_shards": len(together),
        "node_shards_opened": sum(map(len, opened)),
        "node_shards_unneeded": unneeded,
    }


def read_share(shards: str, samples: int, rank: int, world: int) -> dict[str, Any]:
    """Load all batches of a rank; the shards that its process opened, and those that the order names for it."""
    opened: set[str] = set()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".tar"):
            opened.add(Path(arguments[0]).name)

    sys.addaudithook(watch)
    ours = Ours(shards, size=SIZE, workers=1)
    order = ours.order(BATCH, samples=samples)
    for _ in ours.batches(order, rank=rank, world=world):
        pass
    return {"opened": sorted(opened), "needed": ours.shards_of(order, rank, world)}
