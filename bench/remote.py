"""Training batches from an HTTP server that is limited to 100 MB/s, through a cache smaller than the data set."""

import shutil
import time

from bench.dataset import FOLDER, Workload
from bench.http_server import serving
from bench.ours import Ours
from bench.turns import Figures
from shard_tools.manifest import read_manifest

LIMIT = 100e6
BATCH = 16
"""As many shards are read at the same time, of 9 MB each; the cache holds three times as many."""
CACHE_SHARE = 0.5
SIZE = 32
"""Decoded at 1/8, so that it is the network that limits."""


def measure(workload: Workload) -> Figures:
    """The share of the limit that arrives over one epoch, and how often the data set was fetched."""
    shards = workload.many_shards
    files = read_manifest(shards).split("train").shards
    size = sum(shard.bytes for shard in files)
    batch = 4 if workload.quick else BATCH
    cache = FOLDER / "remote-cache"
    shutil.rmtree(cache, ignore_errors=True)
    with serving(shards, LIMIT) as server:
        began = time.perf_counter()
        ours = Ours(server.url, size=SIZE, workers=2, cache_dir=cache, cache_size=int(size * CACHE_SHARE))
        samples = ours.epochs(batch)()
        seconds = time.perf_counter() - began
        sent = server.sent()
        ours.close()
    shutil.rmtree(cache)
    figures = {
        "remote_share": sent / seconds / LIMIT,
        "remote_useful_share": size / seconds / LIMIT,
        "remote_fetched": sent / size,
        "remote_tuples_per_second": samples / seconds,
    }
    print(
        f"remote: {samples:,} tuples, {size / 1e6:,.0f} MB in {len(files)} shards, over HTTP limited to "
        f"{LIMIT / 1e6:.0f} MB/s, cache of {CACHE_SHARE:.0%} of that: {seconds:.1f} s, "
        f"{figures['remote_share']:.1%} of the limit, {figures['remote_fetched']:.2f} × the data set fetched"
    )
    return figures
