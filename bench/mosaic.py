"""MosaicML Streaming on the same tuples, in its own format. Imported only where it is installed."""

import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench.peers import BATCH, DECODERS, DecodeBatch
from bench.turns import Epoch
from shard_tools.components import COMPONENTS


def _let_torchvision_be_imported() -> None:
    """Streaming imports torchvision, of which nothing is used here.

    A torchvision that was built for CUDA can't be imported beside a torch for CPU, since two operators are not there.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_let_torchvision_be_imported()

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


def write(samples: list[dict[str, bytes]], out: Path) -> None:
    """Write shards of encoded images at `out`."""
    with MDSWriter(out=str(out), columns=dict.fromkeys(COMPONENTS, "bytes")) as writer:
        for sample in samples:
            writer.write(sample)


def _loader(folder: Path, decoder: str, workers: int) -> Any:
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    decode = DecodeBatch(DECODERS[decoder])
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=decode)


def tidy() -> None:
    """Remove the shared memory that a killed run has left behind; before anything else is begun."""
    clean_stale_shared_memory()


def epochs(folder: Path, decoder: str, workers: int) -> Epoch:
    """One epoch after the other; a data set of its own for each, since one that has threads must not be forked."""
    loader = _loader(folder, decoder, workers)
    return lambda: sum(len(batch[0]) for batch in loader)


def resume(folder: str, share: float) -> dict[str, float]:
    """Seconds from a saved state at a `share` of the epoch to the first batch."""
    loader = _loader(Path(folder), "simplejpeg", 0)
    state = loader.dataset.state_dict(int(len(loader) * share) * BATCH, from_beginning=True)
    del loader
    began = time.perf_counter()
    loader = _loader(Path(folder), "simplejpeg", 0)
    loader.load_state_dict(state)
    list(islice(loader, 1))
    return {"seconds": time.perf_counter() - began}
