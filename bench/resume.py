"""Seconds and bytes from a new start to the first batch, at half and at 99 % of an epoch of 400,000 tuples."""

import time
from pathlib import Path

from bench.dataset import Workload
from bench.formats import converted, installed
from bench.fresh import bytes_read, call_fresh
from bench.ours import Ours
from bench.peers import BATCH, webdataset_skip
from bench.turns import Figures, take_turns
from shard_tools.manifest import MANIFEST_NAME, read_manifest

SHARES = {"half": 0.5, "99": 0.99}
SIZE = 32
WORKERS = 2
SKIPPED = 20_000


def measure(workload: Workload) -> Figures:
    """Ours on the large shards; webdataset on a part of them, from which the rest is extrapolated; the others' own."""
    figures: Figures = {}
    found = call_fresh(first_batches, shards=workload.big_shards, warm=workload.shards)
    for name, share in SHARES.items():
        quick, exact = found[name], found[f"{name}, no workers"]
        figures[f"resume_{name}_seconds"] = quick["seconds"]
        figures |= {f"resume_{name}_{what}": exact[what] for what in ("bytes_read", "bytes_needed", "samples_before")}
        print(
            f"resume at {share:.0%} of {exact['samples']:,} tuples: first batch after {quick['seconds'] * 1e3:.0f} ms "
            f"with {WORKERS} workers, {exact['seconds'] * 1e3:.0f} ms without; read {exact['bytes_read']:,} bytes, of "
            f"which manifest, indexes of the batch's shards and the batch are {exact['bytes_needed']:,}: "
            f"{exact['samples_before']} samples before the first needed"
        )
    return figures | _webdataset(workload) | ({} if workload.quick else _own_formats(workload))


def first_batches(shards: str, warm: str) -> dict[str, Figures]:
    """From nothing opened to the first batch. What Python loads late is loaded by a batch of other shards before."""
    other = Ours(warm, size=SIZE, workers=WORKERS)
    next(other.batches(other.order(BATCH)))
    other.close()
    found = {}
    for name, share in SHARES.items():
        found[name] = _first_batch(shards, share, WORKERS)
        found[f"{name}, no workers"] = _first_batch(shards, share, 0)
    return found


def _first_batch(shards: str, share: float, workers: int) -> Figures:
    """What is said of bytes holds without workers; with them, the batches after the first are read too."""
    read_before, began = bytes_read(), time.perf_counter()
    ours = Ours(shards, size=SIZE, workers=workers)
    order = ours.order(BATCH)
    step = int(order.steps * share)
    batches = ours.batches(order, first_step=step)
    assert len(next(batches).keys) == BATCH
    seconds, read = time.perf_counter() - began, bytes_read() - read_before
    ours.close()

    places = ours.places(order.batch(step))
    samples = [stop - start for found in places.values() for start, stop in found]
    indexes = [Path(shards, shard.index) for shard in ours.manifest().split("train").shards if shard.file in places]
    needed = sum(samples) + sum(path.stat().st_size for path in (*indexes, Path(shards, MANIFEST_NAME)))
    return {
        "samples": order.samples,
        "seconds": seconds,
        "bytes_read": read,
        "bytes_needed": needed,
        "samples_before": round(max(read - needed, 0) / (sum(samples) / BATCH)),
    }


def _webdataset(workload: Workload) -> Figures:
    skipped = 1_000 if workload.quick else SKIPPED
    (rate,) = take_turns({"webdataset, skipping": webdataset_skip(workload.big_shards, skipped)}, 1).values()
    samples = read_manifest(workload.big_shards).split("train").samples
    figures = {f"resume_{name}_seconds_webdataset": samples * share / rate.median for name, share in SHARES.items()}
    print(
        f"  webdataset: {', '.join(f'{seconds:.1f} s' for seconds in figures.values())}; extrapolated from {skipped:,} "
        f"samples read and thrown away, not decoded, at {rate.median:,.0f}/s"
    )
    return figures


def _own_formats(workload: Workload) -> Figures:
    figures: Figures = {}
    for name, peer in installed().items():
        folder = converted(workload.shards, name, peer)
        for label, share in SHARES.items():
            figures[f"resume_{label}_seconds_{name.lower()}"] = call_fresh(peer.resume, folder=folder, share=share)[
                "seconds"
            ]
    samples = read_manifest(workload.shards).split("train").samples
    for name, seconds in figures.items():
        print(f"  {name}: {seconds * 1e3:.0f} ms, by a saved state, of an epoch of {samples:,} tuples of 256×256")
    return figures
