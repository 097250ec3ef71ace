"""The memory that the loader takes beside its batches, over whole epochs, each in a process of its own."""

import math
import threading

from bench.dataset import Workload
from bench.fresh import call_fresh, family_mb
from bench.ours import Ours, batches_in_flight
from bench.peers import BATCH
from bench.turns import Figures

WORKERS = 2
INTERVAL_SECONDS = 0.02


def measure(workload: Workload) -> Figures:
    """Over an epoch of the large shards, where it must stay flat, and over three of the pictures of 256×256."""
    large = call_fresh(peak, shards=workload.big_shards, size=32, epochs=1)
    native = call_fresh(peak, shards=workload.shards, size=256, epochs=3)
    print(f"memory of the loader beyond {batches_in_flight(WORKERS)} batches in flight, MB, with {WORKERS} workers:")
    print(f"{'':32}{'peak':>8}{'first quarter':>15}{'last quarter':>14}{'batches in flight':>19}")
    for name, found in (("an epoch of the large shards", large), ("256×256, 3 epochs", native)):
        print(
            f"{name:32}{found['peak']:8.0f}{found['first_quarter']:15.0f}{found['last_quarter']:14.0f}{found['batches']:19.0f}"
        )
    return {
        "loader_memory_mb": max(large["peak"], native["peak"]),
        "loader_memory_first_quarter_mb": large["first_quarter"],
        "loader_memory_last_quarter_mb": large["last_quarter"],
    }


def peak(shards: str, size: int, epochs: int) -> Figures:
    """The most memory, above that before there was a loader, less the batches in flight; MB.

    The quarters are those of the time that the epochs take; of each the largest.
    """
    before = family_mb()
    ours = Ours(shards, size=size, workers=WORKERS)
    batch_mb = 0.0
    with _Watch() as watch:
        for number in range(epochs):
            for batch in ours.batches(ours.order(BATCH, epoch=number)):
                batch_mb = sum(tensor.nbytes for tensor in (batch.bg, batch.fgbg, batch.depth, batch.mask)) / 1e6
    in_flight = batches_in_flight(WORKERS) * batch_mb
    above = [resident - before - in_flight for resident in watch.seen]
    quarter = math.ceil(len(above) / 4)
    return {
        "peak": max(above),
        "first_quarter": max(above[:quarter]),
        "last_quarter": max(above[-quarter:]),
        "batches": in_flight,
    }


class _Watch:
    """Looks at the memory of this process and its children again and again, in a thread."""

    def __init__(self) -> None:
        self.seen: list[float] = [family_mb()]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self.seen.append(family_mb())
