"""Tuples per second from disk to batches: ours, webdataset's usual pipeline, and loose files as in the write-up.

All read the same tuples on one process, page cache warm, in turns within one run; what counts are the ratios.

    python -m bench.data --json bench.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench.dataset import tree_and_shards
from dtrain.data.loader import COMPONENTS, Loader
from dtrain.data.order import EpochOrder
from shard_tools.layouts import nested
from shard_tools.manifest import read_manifest

BATCH = 64
NATIVE_SIZE = 256

Epoch = Callable[[], int]
"""Reads one epoch and returns how many tuples came."""


class LooseFiles(Dataset[list[torch.Tensor]]):
    """The write-up's way: open each file with Pillow, resize, make it float."""

    def __init__(self, tree: Path, size: int, limit: int) -> None:
        tuples = nested.scan(tree).tuples
        order = np.random.default_rng(0).permutation(len(tuples))[:limit]
        self._tuples = [tuples[int(index)] for index in order]
        self._tree, self._size = tree, size

    def __len__(self) -> int:
        return len(self._tuples)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        images = []
        for name, file in zip(COMPONENTS, self._tuples[index].files, strict=True):
            image = Image.open(self._tree / file).convert("RGB" if name in ("bg", "fgbg") else "L")
            pixels = np.asarray(image.resize((self._size, self._size)), dtype=np.float32) / 255
            images.append(torch.from_numpy(pixels.reshape(self._size, self._size, -1)).permute(2, 0, 1))
        return images


def ours(shards: Path, size: int, threads: int) -> Epoch:
    """Our loader, in the order of training, a new epoch each time."""
    manifest = read_manifest(shards)
    loader = Loader(shards, manifest, "train", size=size, threads=threads, background_cache_bytes=64 * 2**20)
    epochs = iter(range(10**6))

    def epoch() -> int:
        order = EpochOrder(loader.reader.shard_lengths, seed=0, stage=0, epoch=next(epochs), global_batch=BATCH)
        return sum(len(batch.keys) for batch in loader.batches(order.batch(step) for step in range(order.steps)))

    return epoch


def webdataset_pil(shards: Path, workers: int) -> Epoch:
    """webdataset with decode("pil"), images of native size as uint8, batched by its own loader."""

    def to_arrays(sample: dict[str, Image.Image]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(sample[f"{name}.jpg"]).copy()) for name in COMPONENTS]

    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=False).shuffle(1000).decode("pil").map(to_arrays).batched(BATCH)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    return lambda: sum(len(batch[0]) for batch in loader)


def loose(tree: Path, size: int, workers: int, limit: int) -> Epoch:
    loader = DataLoader(LooseFiles(tree, size, limit), batch_size=BATCH, num_workers=workers)
    return lambda: sum(len(batch[0]) for batch in loader)


def measure(contenders: dict[str, Epoch], rounds: int) -> dict[str, float]:
    """Median tuples/s of each contender over `rounds`, all taking turns; one round before counts for nothing."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, epoch in contenders.items():
            began = time.perf_counter()
            count = epoch()
            if number:
                rates[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def contenders(tree: Path, shards: Path) -> Iterator[tuple[str, Epoch]]:
    limit = read_manifest(shards).split("train").samples
    yield "write-up: loose files, 0 workers", loose(tree, NATIVE_SIZE, 0, limit)
    yield "write-up: loose files, 2 workers", loose(tree, NATIVE_SIZE, 2, limit)
    yield 'webdataset decode("pil"), 0 workers', webdataset_pil(shards, 0)
    yield 'webdataset decode("pil"), 2 workers', webdataset_pil(shards, 2)
    for threads in (0, 1, 2):
        yield f"ours, {threads} threads", ours(shards, NATIVE_SIZE, threads)
    for size in (128, 64, 32):
        yield f"ours, 2 threads, decoded at {size}", ours(shards, size, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="epochs each, after one that does not count")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    rates = measure(dict(contenders(*tree_and_shards(NATIVE_SIZE))), arguments.rounds)
    writeup = max(rate for name, rate in rates.items() if name.startswith("write-up"))
    peer = max(rate for name, rate in rates.items() if name.startswith("webdataset"))
    print(f"{'':42}{'tuples/s':>10}{'× write-up':>12}{'× webdataset':>14}")
    for name, rate in rates.items():
        print(f"{name:42}{rate:10,.0f}{rate / writeup:12.2f}{rate / peer:14.2f}")
    if arguments.json:
        best = rates["ours, 2 threads"]
        figures = {**rates, "ratio_writeup": best / writeup, "ratio_webdataset": best / peer}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
