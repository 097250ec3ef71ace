"""Small shards with a manifest, written member by member: any images, in any order, backgrounds in or beside them."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shard_tools.index import IndexedSample, Member, format_index
from shard_tools.manifest import Component, Counts, Manifest, Shard, Split
from shard_tools.tar import TarWriter

NAMES = ("bg", "fgbg", "depth", "mask")
Pixels = NDArray[np.uint8]
Tuple = Mapping[str, bytes]


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def decode(data: bytes, mode: str) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def random_tuple(seed: int, *, size: tuple[int, int] = (20, 12), background: int | None = None) -> dict[str, bytes]:
    """Noise of `size` (width, height); tuples with the same `background` have the same bg."""
    random = np.random.default_rng(seed)
    shape = size[::-1]
    levels = random.integers(100, 256)
    bg = np.random.default_rng((1, seed if background is None else background))
    return {
        "bg": png(bg.integers(0, 256, (*shape, 3), dtype=np.uint8)),
        "fgbg": png(random.integers(0, levels, (*shape, 3), dtype=np.uint8)),
        "depth": png(random.integers(0, levels, shape, dtype=np.uint8)),
        "mask": png(np.where(random.random(shape) < random.random(), 255, 6).astype(np.uint8)),
    }


def masked_tuple(mask: Pixels) -> dict[str, bytes]:
    """A tuple with this mask, uint8 (H, W); all else is mid-grey."""
    grey = np.full_like(mask, 128)
    colour = png(np.stack([grey] * 3, axis=-1))
    return {"bg": colour, "fgbg": colour, "depth": png(grey), "mask": png(mask)}


def write_shards(
    folder: Path, splits: Mapping[str, Sequence[Mapping[str, Tuple]]], *, backgrounds: Mapping[str, bytes] | None = None
) -> Path:
    """Write a shard for each {key: tuple}, by split. With `backgrounds` these are stored once, in a shard of their own.

    A tuple then says by its "bg" which one it has: the key as bytes.
    """
    folder.mkdir(parents=True)
    written = {}
    for split, shards in splits.items():
        files = [_write(folder, f"{split}-{n}", shard, backgrounds is not None) for n, shard in enumerate(shards)]
        beside: tuple[Shard, ...] = ()
        if backgrounds is not None:
            library = {key: {"bg": data} for key, data in backgrounds.items()}
            beside = (_write(folder, f"{split}-backgrounds-0", library, False),)
        total = sum(file.samples for file in files)
        written[split] = Split(samples=total, shards=tuple(files), backgrounds=beside)
    count = sum(split.samples for split in written.values())
    manifest = Manifest(
        components=tuple(
            Component(name=name, extension="png", mode="RGB" if "bg" in name else "L", size=None) for name in NAMES
        ),
        splits=written,
        counts=Counts(found=count, packed=count, left_out=0),
        build={},
    )
    (folder / "shards.json").write_text(manifest.text())
    return folder


def _write(folder: Path, name: str, shard: Mapping[str, Tuple], referring: bool) -> Shard:
    index = []
    with (folder / f"{name}.tar").open("wb") as file:
        tar = TarWriter(file)
        for key, images in shard.items():
            members = {f"{part}.png": data for part, data in images.items() if not (referring and part == "bg")}
            members["json"] = json.dumps({"bg": images["bg"].decode()} if referring else {}).encode()
            places = [Member(*place) for place in tar.add_sample(key, members.items())]
            index.append(IndexedSample(key, tuple(places)))
        size, sha256 = tar.finish()
    text = format_index(index)
    (folder / f"{name}.idx").write_text(text)
    return Shard(
        file=f"{name}.tar",
        samples=len(index),
        bytes=size,
        sha256=sha256,
        index=f"{name}.idx",
        index_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
