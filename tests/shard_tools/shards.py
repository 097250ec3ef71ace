"""A small data set of real JPEGs, written shard by shard as a build does, so that a test can put anything in it."""

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from shard_tools.index import IndexedSample, Member, format_index
from shard_tools.manifest import MANIFEST_NAME, Component, Counts, Manifest, Shard, Split
from shard_tools.tar import TarWriter

SIZE = (24, 16)
COMPONENTS = {"bg": "RGB", "fgbg": "RGB", "depth": "L", "mask": "L"}

TUPLES = {"train": [[(1, 1), (1, 2), (2, 1)], [(2, 2), (2, 3)]], "test": [[(3, 1), (3, 2)]]}
"""Background and placement of each tuple, shard by shard."""

Sample = dict[str, bytes]
"""The members of a sample, in order, by their extension."""

Samples = dict[str, Sample]
"""The samples of one shard by their key."""


def jpeg(seed: int, mode: str = "RGB", size: tuple[int, int] = SIZE) -> bytes:
    """Noise of `size` (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


@dataclass
class DataSet:
    """What is to be written: per split the samples of each shard, and of each shard of backgrounds."""

    splits: dict[str, list[Samples]]
    backgrounds: dict[str, list[Samples]] = field(default_factory=dict)

    def write(self, folder: Path, *, packed: int | None = None) -> Path:
        """Write shards, indexes and a manifest that agrees with them, `packed` apart; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        splits = {}
        for name, shards in self.splits.items():
            written = tuple(write_shard(folder, f"{name}-{n:06d}", samples) for n, samples in enumerate(shards))
            backgrounds = tuple(
                write_shard(folder, f"{name}-backgrounds-{n:06d}", samples)
                for n, samples in enumerate(self.backgrounds.get(name, []))
            )
            splits[name] = Split(samples=sum(map(len, shards)), shards=written, backgrounds=backgrounds)
        total = sum(split.samples for split in splits.values())
        manifest = Manifest(
            components=tuple(
                Component(name=name, extension="jpg", mode=mode, size=SIZE) for name, mode in COMPONENTS.items()
            ),
            splits=splits,
            counts=Counts(found=total + 1, packed=total if packed is None else packed, left_out=1),
            build={"layout": "nested", "source": "photos", "seed": 0, "limit": None},
        )
        (folder / MANIFEST_NAME).write_text(manifest.text())
        return folder


def seal(folder: Path) -> None:
    """Let the manifest vouch for the files as they are now, whatever is in them."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    for split in content["splits"].values():
        for shard in [*split["shards"], *split.get("backgrounds", [])]:
            tar, index = ((folder / shard[name]).read_bytes() for name in ("file", "index"))
            shard["bytes"] = len(tar)
            shard["sha256"], shard["index_sha256"] = (hashlib.sha256(data).hexdigest() for data in (tar, index))
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


def write_shard(folder: Path, name: str, samples: Samples) -> Shard:
    """One shard and its index."""
    indexed = []
    with (folder / f"{name}.tar").open("wb") as file:
        tar = TarWriter(file)
        for key, sample in samples.items():
            members = [Member(*place) for place in tar.add_sample(key, sample.items())]
            indexed.append(IndexedSample(key, tuple(members)))
        size, digest = tar.finish()
    index = format_index(indexed).encode()
    (folder / f"{name}.idx").write_bytes(index)
    return Shard(
        file=f"{name}.tar",
        samples=len(samples),
        bytes=size,
        sha256=digest,
        index=f"{name}.idx",
        index_sha256=hashlib.sha256(index).hexdigest(),
    )


def make_data_set(*, shared: bool = False, files: bool = True) -> DataSet:
    """Training tuples in shards of three and two, test tuples in one of two, on other backgrounds.

    With `shared` backgrounds are stored once; without `files` the samples do not say where their images lay.
    """
    data_set = DataSet({})
    for split, shards in TUPLES.items():
        data_set.splits[split] = [
            {f"bg{b}_fg_1_{k}": _tuple(b, k, shared=shared, files=files) for b, k in numbers} for numbers in shards
        ]
        if shared:
            used = sorted({b for numbers in shards for b, _ in numbers})
            data_set.backgrounds[split] = [{f"bg{b}": _background(b, files=files) for b in used}]
    return data_set


def source_tree() -> dict[str, bytes]:
    """The files that the data set comes from, by their paths."""
    numbers = [number for shards in TUPLES.values() for shard in shards for number in shard]
    return {path: data for b, k in numbers for path, data in _images(b, k).items()}


def _images(b: int, k: int) -> dict[str, bytes]:
    return {
        f"bg/bg{b}.jpg": jpeg(b),
        f"bg{b}/fg_1/overlay/{k}.JPG": jpeg(100 * b + k),
        f"bg{b}/fg_1/depth/{k}.jpg": jpeg(200 * b + k, "L"),
        f"bg{b}/fg_1/mask/{k}.jpg": jpeg(300 * b + k, "L"),
    }


def _tuple(b: int, k: int, *, shared: bool, files: bool) -> Sample:
    images = _images(b, k)
    metadata = {
        "background": b,
        **({"bg": f"bg{b}"} if shared else {}),
        **({"files": list(images)} if files else {}),
    }
    members = {f"{name}.jpg": data for name, data in zip(COMPONENTS, images.values(), strict=True)}
    if shared:
        del members["bg.jpg"]
    return {**members, "json": json.dumps(metadata).encode()}


def _background(b: int, *, files: bool) -> Sample:
    path, data = next(iter(_images(b, 1).items()))
    return {"bg.jpg": data, "json": json.dumps({"background": b, **({"files": [path]} if files else {})}).encode()}
