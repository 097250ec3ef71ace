"""The write-up's way and webdataset's, and what puts a decoder into the peers that have shards of their own.

All give batches of uint8, except the write-up, which makes them float. Nothing of ours is in their way.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bench.turns import Epoch
from shard_tools.components import COMPONENTS
from shard_tools.layouts import nested

BATCH = 64

Decode = Callable[[bytes, str], Tensor]
"""The pixels (H, W, C), uint8, of the bytes of an image in a colour mode, "RGB" or "L"."""


class LooseFiles(Dataset[list[Tensor]]):
    """The write-up's way: open each file with Pillow, resize, make it float."""

    def __init__(self, tree: Path, size: int, limit: int) -> None:
        tuples = nested.scan(tree).tuples
        order = np.random.default_rng(0).permutation(len(tuples))[:limit]
        self._tuples = [tuples[int(index)] for index in order]
        self._tree, self._size = tree, size

    def __len__(self) -> int:
        return len(self._tuples)

    def __getitem__(self, index: int) -> list[Tensor]:
        images = []
        for name, file in zip(COMPONENTS, self._tuples[index].files, strict=True):
            image = Image.open(self._tree / file).convert(_mode(name))
            pixels = np.asarray(image.resize((self._size, self._size)), dtype=np.float32) / 255
            images.append(torch.from_numpy(pixels.reshape(self._size, self._size, -1)).permute(2, 0, 1))
        return images


def writeup(tree: Path, size: int, workers: int, limit: int) -> Epoch:
    """`limit` tuples of a tree of loose files, through torch's DataLoader."""
    loader = DataLoader(LooseFiles(tree, size, limit), batch_size=BATCH, num_workers=workers)
    return lambda: sum(len(batch[0]) for batch in loader)


def webdataset_pil(shards: Path, workers: int) -> Epoch:
    """webdataset with decode("pil"), images of native size as uint8, batched by its own loader."""

    def to_arrays(sample: dict[str, Image.Image]) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(sample[f"{name}.jpg"]).copy()) for name in COMPONENTS]

    dataset = webdataset.WebDataset(_urls(shards), shardshuffle=False)
    dataset = dataset.shuffle(1000).decode("pil").map(to_arrays).batched(BATCH)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    return lambda: sum(len(batch[0]) for batch in loader)


def webdataset_skip(shards: Path, samples: int) -> Epoch:
    """So many samples read and thrown away, before any decoding: how webdataset gets to a place further on."""
    dataset = webdataset.WebDataset(_urls(shards), shardshuffle=False)
    return lambda: sum(1 for _ in dataset.slice(samples))


def _urls(shards: Path) -> list[str]:
    return sorted(str(path) for path in shards.glob("train-*.tar"))


def with_pillow(data: bytes, mode: str) -> Tensor:
    """Pillow's pixels."""
    pixels = np.array(Image.open(io.BytesIO(data)).convert(mode))
    return torch.from_numpy(pixels if mode == "RGB" else pixels[..., None])


def with_simplejpeg(data: bytes, mode: str) -> Tensor:
    """libjpeg-turbo's pixels, through the library that ours uses."""
    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB" if mode == "RGB" else "GRAY"))


DECODERS: dict[str, Decode] = {"Pillow": with_pillow, "simplejpeg": with_simplejpeg}


class DecodeBatch:
    """Makes a batch of samples that are dictionaries of encoded images, where the loader runs: in its workers."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def __call__(self, samples: list[dict[str, bytes]]) -> Any:
        return default_collate([[self._decode(sample[name], _mode(name)) for name in COMPONENTS] for sample in samples])


def _mode(component: str) -> str:
    return "RGB" if component in ("bg", "fgbg") else "L"
