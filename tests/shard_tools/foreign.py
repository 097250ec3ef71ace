"""Shards as other programs write them: webdataset's ShardWriter, GNU tar, Python's tarfile."""

import io
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

SIZE = (24, 16)
"""Width and height of the images, in pixels."""

USUAL = {"bg.jpg": "RGB", "fgbg.jpg": "RGB", "depth.png": "I;16", "mask.png": "L"}
"""Members of a sample, and the colour modes of their images."""

OTHER = {"clean.jpg": "RGB", "input.jpg": "RGB", "d.png": "I;16", "seg.png": "L"}

Sample = dict[str, Any]
"""The members of one sample, bytes for those that are not to be encoded by webdataset."""


def image(seed: int, suffix: str, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    """Noise of a mode, in the format that Pillow knows by the suffix."""
    random, shape = np.random.default_rng(seed), (size[1], size[0])
    match mode:
        case "I;16":
            pixels = Image.fromarray(random.integers(0, 2**16, shape, dtype=np.uint16))
        case "F":
            pixels = Image.fromarray(random.random(shape, dtype=np.float32))
        case _:
            channels = () if mode == "L" else (len(mode),)
            pixels = Image.fromarray(random.integers(0, 256, (*shape, *channels), dtype=np.uint8), mode)
    file = io.BytesIO()
    pixels.save(file, Image.registered_extensions()[f".{suffix.lower()}"], **options)
    return file.getvalue()


def make_sample(seed: int, members: Mapping[str, str] = USUAL, size: tuple[int, int] = SIZE) -> Sample:
    """A whole sample with images of the given modes."""
    return {
        member: image(10 * seed + number, member.rpartition(".")[2], mode, size)
        for number, (member, mode) in enumerate(members.items())
    }


def write_with_webdataset(folder: Path, prefix: str, samples: Iterable[tuple[str, Sample]], per_shard: int) -> None:
    """PREFIX-000000.tar and so on, each of `per_shard` samples but the last."""
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/{prefix}-%06d.tar", maxcount=per_shard, verbose=0) as writer:
        for key, sample in samples:
            writer.write({"__key__": key, **sample})


def write_with_gnu_tar(path: Path, samples: Iterable[tuple[str, Sample]]) -> None:
    """The samples in a folder of the archive, which has an entry of its own."""
    tree = path.with_suffix("") / "photos"
    tree.mkdir(parents=True)
    for key, sample in samples:
        for member, data in sample.items():
            (tree / f"{key}.{member}").write_bytes(data)
    subprocess.run(["tar", "--sort=name", "-C", tree.parent, "-cf", path, "photos"], check=True)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of just these members, in this order."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_samples(path: Path, samples: Mapping[str, Sample]) -> Path:
    """A tar of these samples, by their keys."""
    return write_tar(
        path, ((f"{key}.{member}", data) for key, sample in samples.items() for member, data in sample.items())
    )
