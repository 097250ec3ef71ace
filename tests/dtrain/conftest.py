"""Tiny trees of real JPEGs packed with the real packer, and configurations to read them with."""

import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from dtrain.config import Config, load_config
from dtrain.data.loader import Loader, OnBadSample
from dtrain.data.reader import LocalFiles
from dtrain.data.workers import WorkerKind, Workers
from shard_tools.build import build
from shard_tools.build_plan import Backgrounds, BuildOptions
from shard_tools.manifest import Manifest, read_manifest
from shard_tools.storage import LocalStorage
from shard_tools.workers import run_tasks

BACKGROUNDS, PLACEMENTS, SIDE = 4, 10, 48


@dataclass(frozen=True)
class Shards:
    """A packed tree, and the tree."""

    source: Path
    folder: Path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    @property
    def files(self) -> LocalFiles:
        return LocalFiles(LocalStorage(self.folder))

    def lengths(self, split: str = "train") -> list[int]:
        return [shard.samples for shard in self.manifest.split(split).shards]

    def source_files(self, key: str) -> list[Path]:
        """The files of a sample in the order bg, fgbg, depth, mask."""
        background, foreground, placement = re.findall(r"\d+", key)
        folder = self.source / f"bg{background}/fg_{foreground}"
        return [
            self.source / f"bg/bg{background}.jpg",
            *(folder / kind / f"{placement}.jpg" for kind in ("overlay", "depth", "mask")),
        ]


def smooth_pixels(seed: int, width: int, height: int, *, gray: bool = False) -> NDArray[np.uint8]:
    """Random pixels that change gradually, as photos do."""
    random = np.random.default_rng(seed)
    shape = (height // 8 + 2, width // 8 + 2) if gray else (height // 8 + 2, width // 8 + 2, 3)
    coarse = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: NDArray[np.uint8] | NDArray[np.uint16], kind: str = "JPEG", **options: int) -> bytes:
    """Pixels as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def make_tree(root: Path, sizes: list[tuple[int, int]], placements: int) -> Path:
    """The nested layout with one foreground and a background of each of `sizes` (width, height)."""
    seed = 0
    for background, (width, height) in enumerate(sizes, start=1):
        folder = f"bg{background}/fg_1"
        files = [(f"bg/bg{background}.jpg", False)]
        for placement in range(1, placements + 1):
            files += [(f"{folder}/{kind}/{placement}.jpg", kind != "overlay") for kind in ("overlay", "depth", "mask")]
        for name, gray in files:
            seed += 1
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(smooth_pixels(seed, width, height, gray=gray), quality=90))
    return root


def pack(
    root: Path,
    sizes: list[tuple[int, int]],
    placements: int,
    *,
    shard_size: int = 8,
    backgrounds: Backgrounds = "sample",
) -> Shards:
    """Make a tree and pack it, below `root`."""
    source, folder = make_tree(root / "tree", sizes, placements), root / "shards"
    options = BuildOptions(shard_size=shard_size, seed=3, backgrounds=backgrounds)
    build(source, folder, options, partial(run_tasks, workers=1))
    return Shards(source, folder)


@dataclass(frozen=True)
class WorkerOptions:
    """How many there are, and of which kind."""

    count: int
    kind: WorkerKind = "thread"


def decode_processes(parent: int | None = None) -> list[psutil.Process]:
    """Children that load, of this process or of another."""
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):
            if "decode_process" in str(child.cmdline()):
                found.append(child)
    return found


IN_THE_LOOP = WorkerOptions(0)
ALL_WORKERS = [IN_THE_LOOP, *(WorkerOptions(count, kind) for kind in get_args(WorkerKind) for count in (1, 3))]


@contextmanager
def open_loader(
    shards: Shards,
    split: str = "train",
    *,
    size: int = 48,
    workers: WorkerOptions = IN_THE_LOOP,
    cache: int = 2**20,
    on_bad_sample: OnBadSample = "raise",
) -> Iterator[Loader]:
    """A loader and its workers, which end after the block."""
    with (
        closing(Workers(workers.count, kind=workers.kind, decode="fast", background_cache_bytes=cache)) as started,
        closing(
            Loader(shards.files, shards.manifest, split, started, size=size, on_bad_sample=on_bad_sample)
        ) as loader,
    ):
        yield loader


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """30 training samples in 4 shards and 10 test samples in 2, 48×48 pixels; not to be changed."""
    return pack(tmp_path_factory.mktemp("data"), [(SIDE, SIDE)] * BACKGROUNDS, PLACEMENTS)


@pytest.fixture
def own_shards(shards: Shards, tmp_path: Path) -> Shards:
    """A copy of the shards that a test may damage."""
    return Shards(shards.source, shutil.copytree(shards.folder, tmp_path / "own_shards"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 512, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast


@pytest.fixture
def make_config(shards: Shards, tmp_path: Path) -> Callable[..., Config]:
    """A small configuration on the shards, its run in tmp_path/run, changed by overrides."""

    def make(*overrides: str) -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(
            f"run: {tmp_path / 'run'}\n"
            f"data: {{manifest: {shards.folder}}}\n"
            "model: {width: 0.0625}\n"
            "stages:\n"
            "  - {size: 24, batch: 6, epochs: 2}\n"
            "  - {size: 48, batch: 4}\n"
        )
        return load_config(file, overrides)

    return make
