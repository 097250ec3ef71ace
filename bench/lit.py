"""litdata on the same tuples, in its own format. Imported only where it is installed."""

import time
from itertools import islice
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import Cache

from bench.peers import BATCH, DECODERS, DecodeBatch
from bench.turns import Epoch


def write(samples: list[dict[str, bytes]], out: Path) -> None:
    """Write chunks of encoded images at `out`, of the 64 MB that its documentation takes."""
    cache = Cache(str(out), chunk_bytes="64MB")
    for number, sample in enumerate(samples):
        cache[number] = sample
    cache.done()
    cache.merge()


def _loader(folder: Path, decoder: str, workers: int) -> Any:
    dataset = StreamingDataset(str(folder), shuffle=True, drop_last=False)
    decode = DecodeBatch(DECODERS[decoder])
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=decode)


def tidy() -> None:
    """Nothing is left behind that could be in the way."""


def epochs(folder: Path, decoder: str, workers: int) -> Epoch:
    """One epoch after the other."""
    loader = _loader(folder, decoder, workers)
    return lambda: sum(len(batch[0]) for batch in loader)


def resume(folder: str, share: float) -> dict[str, float]:
    """Seconds from a saved state at a `share` of the epoch to the first batch."""
    loader = _loader(Path(folder), "simplejpeg", 0)
    steps = int(len(loader) * share)
    for _ in zip(range(steps), loader, strict=False):
        pass
    state = loader.state_dict()
    began = time.perf_counter()
    loader = _loader(Path(folder), "simplejpeg", 0)
    loader.load_state_dict(state)
    list(islice(loader, 1))
    return {"seconds": time.perf_counter() - began}
