"""The data that benchmarks run on: made once by the project's own commands, under bench/data."""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.big_tree import make_big_tree
from shard_tools.components import COMPONENTS

FOLDER = Path(__file__).parent / "data"
PHOTOS = Path(__file__).parents[2] / "shared" / "real"
"""Where real photographs lie beside a checkout: bg/*.jpg, and fg/*.png with alpha."""


@dataclass(frozen=True)
class Workload:
    """What everything is measured on, made when it is asked for: real `photos`, or rendered rooms where there are none.

    `quick`: 120 rendered tuples, and as few of all else; no figures to be quoted.
    """

    photos: Path = PHOTOS
    big: Path | None = None
    rounds: int = 5
    quick: bool = False

    @cached_property
    def tree(self) -> Path:
        """Tuples of 256×256, about 2,900 of them to train."""
        return self._tree(256)

    @cached_property
    def shards(self) -> Path:
        """Tuples of `tree`, 200 in a shard; 44 batches of 64, which two workers can share evenly."""
        return build(self.tree, 10) if self.quick else build(self.tree, 200, limit=44 * 64)

    @cached_property
    def many_shards(self) -> Path:
        """100 shards of 200 tuples of 256×256, all to train, 0.9 GB: each picture comes several times."""
        return self._repeated(256, tuples=400 if self.quick else 20_000, shard_size=10 if self.quick else 200)

    @cached_property
    def big_shards(self) -> Path:
        """400 shards of 1,000 tuples of 32×32, all to train, 3.2 GB, unless others were given."""
        if self.big:
            return self.big
        return self._repeated(32, tuples=4_000 if self.quick else 400_000, shard_size=100 if self.quick else 1_000)

    def _tree(self, size: int) -> Path:
        if self.quick:
            return sample_tree(size, backgrounds=4, foregrounds=1)
        if (self.photos / "bg").is_dir():
            return photo_tree(self.photos, size)
        return sample_tree(size, backgrounds=16)

    def _repeated(self, size: int, *, tuples: int, shard_size: int) -> Path:
        """Shards of a tree of hard links to a few thousand files, packed as any other tree."""
        source = self._tree(size)
        tree = source.with_name(f"{source.name}-{tuples}")
        backgrounds = 10 if self.quick else 100
        make_big_tree(source, tree, backgrounds=backgrounds, foregrounds=-(-tuples // (40 * backgrounds)))
        return build(tree, shard_size, "--split", "index", "--train", str(tuples), "--test", "0")


def sample_tree(size: int, *, backgrounds: int = 12, foregrounds: int = 6) -> Path:
    """A tree of rooms of side `size`, 12 × 6 × 40 = 2,880 tuples by default; kept between calls."""
    tree = FOLDER / f"rooms{size}-{backgrounds}x{foregrounds}"
    _run("sample", str(tree), "--backgrounds", str(backgrounds), "--foregrounds", str(foregrounds), "--size", str(size))
    return tree


def photo_tree(photos: Path, size: int, *, foregrounds: int = 4) -> Path:
    """A tree of some of the cut-out objects on all the photographs; kept between calls.

    With 24 photographs and 4 objects, 24 × 4 × 40 = 3,840 tuples, 2,880 to train.
    """
    chosen = FOLDER / f"foregrounds-{foregrounds}"
    chosen.mkdir(parents=True, exist_ok=True)
    found = sorted((photos / "fg").glob("*.png"))
    for path in found[:: max(len(found) // foregrounds, 1)][:foregrounds]:
        (chosen / path.name).write_bytes(path.read_bytes())
    tree = FOLDER / f"photos{size}-{foregrounds}"
    _run("compose", str(tree), "--backgrounds", str(photos / "bg"), "--foregrounds", str(chosen), "--size", str(size))
    return tree


def tree_and_shards(size: int, *, backgrounds: int = 12, foregrounds: int = 6) -> tuple[Path, Path]:
    """A tree of rooms and its shards of 200 tuples."""
    tree = sample_tree(size, backgrounds=backgrounds, foregrounds=foregrounds)
    return tree, build(tree, 200)


def build(tree: Path, shard_size: int, *options: str, limit: int | None = None) -> Path:
    """The shards of a tree, or of `limit` of its training tuples, beside it; kept between calls."""
    shards = tree.with_name(f"{tree.name}-{limit or 'all'}-shards{shard_size}")
    limited = () if limit is None else ("--limit", str(limit))
    _run("build", str(tree), str(shards), "--shard-size", str(shard_size), *options, *limited)
    return shards


def encoded_samples(shards: Path) -> Iterator[dict[str, bytes]]:
    """The encoded images of each training tuple by component, read as any program reads a tar."""
    for path in sorted(shards.glob("train-*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, component, _ = member.name.split(".", 2) if member.name.count(".") > 1 else (member.name, "", "")
                file = tar.extractfile(member)
                if component in COMPONENTS and file is not None:
                    samples.setdefault(key, {})[component] = file.read()
        yield from samples.values()


def _run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "shard_tools", *command], check=True, stdout=subprocess.DEVNULL)
