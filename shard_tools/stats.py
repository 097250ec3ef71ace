"""The statistics of a split: integer sums over its images, and their merging. Never reads, decodes or draws.

All that is added up is an integer, so the result is the same for any order and any number of processes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shard_tools.components import COMPONENTS

LEVELS = 256
COVERAGE_BINS = 50
MAX_SIZES = 20

_COVERED = slice(128, LEVELS)
_SOFT = slice(8, LEVELS - 8)

Levels = NDArray[np.int64]


class ImageCounts(NamedTuple):
    """One image: bytes of its file, (width, height) in pixels, and its pixels by channel and level, (C, 256)."""

    bytes: int
    size: tuple[int, int]
    levels: Levels


def count_image(file_bytes: int, pixels: NDArray[np.uint8]) -> ImageCounts:
    """Count an image of `file_bytes` bytes that was decoded to `pixels`, uint8 (H, W) or (H, W, 3)."""
    height, width = pixels.shape[:2]
    levels = np.array(Image.fromarray(pixels).histogram(), dtype=np.int64).reshape(-1, LEVELS)
    return ImageCounts(file_bytes, (width, height), levels)


@dataclass
class ComponentSums:
    """Sums over the images of one component; `levels` has shape (1, 256) or (3, 256)."""

    levels: Levels
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    bytes_total: int = 0
    bytes_min: float = math.inf
    bytes_max: int = 0

    def add(self, image: ImageCounts) -> None:
        """Count one more image."""
        self.levels += image.levels
        self.sizes[image.size] += 1
        self.bytes_total += image.bytes
        self.bytes_min = min(self.bytes_min, image.bytes)
        self.bytes_max = max(self.bytes_max, image.bytes)

    def merge(self, other: "ComponentSums") -> None:
        """Take in the sums over other images."""
        self.levels += other.levels
        self.sizes.update(other.sizes)
        self.bytes_total += other.bytes_total
        self.bytes_min = min(self.bytes_min, other.bytes_min)
        self.bytes_max = max(self.bytes_max, other.bytes_max)

    @property
    def images(self) -> int:
        return self.sizes.total()

    @property
    def bytes_mean(self) -> float:
        return self.bytes_total / self.images

    @property
    def mean(self) -> list[float]:
        """Of the pixels, in [0, 1], one value a channel."""
        return [total / (pixels * 255) for pixels, total, _ in self._moments()]

    @property
    def std(self) -> list[float]:
        """Deviation of the pixels of the whole population, in [0, 1], one value a channel."""
        return [math.sqrt(pixels * squares - total**2) / (pixels * 255) for pixels, total, squares in self._moments()]

    def frequent_sizes(self) -> list[tuple[tuple[int, int], int]]:
        """((width, height), images) of at most MAX_SIZES sizes, the most frequent first."""
        return sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:MAX_SIZES]

    def as_json(self) -> dict[str, Any]:
        """Mean and deviation per channel, bytes of the files, sizes of the images."""
        sizes = self.frequent_sizes()
        return {
            "mean": self.mean,
            "std": self.std,
            "bytes": {
                "total": self.bytes_total,
                "mean": self.bytes_mean,
                "min": self.bytes_min,
                "max": self.bytes_max,
            },
            "sizes": [{"width": width, "height": height, "images": images} for (width, height), images in sizes],
            "more_sizes": len(self.sizes) - len(sizes),
        }

    def _moments(self) -> list[tuple[int, int, int]]:
        """Per channel the number of pixels, their sum and the sum of their squares: Python integers of any length."""
        return [
            (
                sum(counts),
                sum(level * count for level, count in enumerate(counts)),
                sum(level**2 * count for level, count in enumerate(counts)),
            )
            for counts in self.levels.tolist()
        ]


@dataclass
class CoverageSums:
    """The share of a mask's pixels that are above 127, over all masks.

    `covered` adds up such pixels by the number of pixels of their image: an exact mean also where sizes differ.
    """

    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(COVERAGE_BINS, dtype=np.int64))
    covered: Counter[int] = field(default_factory=Counter)
    empty: int = 0
    min: float = 1.0
    max: float = 0.0

    def add(self, mask: ImageCounts) -> None:
        """Count one more mask."""
        covered, pixels = int(mask.levels[0, _COVERED].sum()), math.prod(mask.size)
        self.histogram[min(covered * COVERAGE_BINS // pixels, COVERAGE_BINS - 1)] += 1
        self.covered[pixels] += covered
        self.empty += covered == 0
        self.min = min(self.min, covered / pixels)
        self.max = max(self.max, covered / pixels)

    def merge(self, other: "CoverageSums") -> None:
        """Take in the sums over other masks."""
        self.histogram += other.histogram
        self.covered.update(other.covered)
        self.empty += other.empty
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)

    @property
    def mean(self) -> float:
        """The mean over masks, each of which counts the same whatever its size."""
        return math.fsum(covered / pixels for pixels, covered in self.covered.items()) / int(self.histogram.sum())

    def as_json(self) -> dict[str, Any]:
        """Shares of the image, the number of empty masks and their share, and the histogram over [0, 1]."""
        return {
            "mean": self.mean,
            "min": self.min,
            "max": self.max,
            "empty": self.empty,
            "empty_share": self.empty / int(self.histogram.sum()),
            "histogram": self.histogram.tolist(),
        }


@dataclass
class SplitSums:
    """All sums over the tuples of a split, or of a part of it."""

    tuples: int = 0
    components: dict[str, ComponentSums] = field(default_factory=dict)
    coverage: CoverageSums = field(default_factory=CoverageSums)

    def add(self, images: Mapping[str, ImageCounts]) -> None:
        """Count one more tuple: all its images by the name of their component."""
        self.tuples += 1
        self.coverage.add(images["mask"])
        for name in COMPONENTS:
            if name not in self.components:
                self.components[name] = ComponentSums(np.zeros_like(images[name].levels))
            self.components[name].add(images[name])

    def merge(self, other: "SplitSums") -> None:
        """Take in the sums over other tuples."""
        self.tuples += other.tuples
        self.coverage.merge(other.coverage)
        for name, sums in other.components.items():
            if name not in self.components:
                self.components[name] = ComponentSums(np.zeros_like(sums.levels))
            self.components[name].merge(sums)

    @property
    def soft_share(self) -> float:
        """Share of the masks' pixels that are neither nearly 0 (0 to 7) nor nearly 255 (248 to 255)."""
        levels = self.components["mask"].levels
        return int(levels[:, _SOFT].sum()) / int(levels.sum())

    def as_json(self) -> dict[str, Any]:
        """What stats.json holds of a split; of one without tuples only that there are none."""
        content: dict[str, Any] = {"tuples": self.tuples}
        if self.tuples:
            content |= {name: sums.as_json() for name, sums in self.components.items()}
            content["depth"]["histogram"] = self.components["depth"].levels[0].tolist()
            content["mask"]["coverage"] = self.coverage.as_json()
            content["mask"]["soft_share"] = self.soft_share
        return content
