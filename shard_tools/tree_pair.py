"""One foreground on one background at all its places, as files. Which pairs there are is the business of `tree`.

A pair is written as bgB/.fg_F.partial/ and renamed, so that what has its final name is whole.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shard_tools import recipe
from shard_tools.atomic import PARTIAL_SUFFIX

UNFINISHED = ".unfinished"
"""In the tree: the folder of what is prepared for all pairs, bgB.npz and fg_F.npz."""

COMPONENTS = ("overlay", "depth", "mask")
JPEG_QUALITY = 95
CHROMA_SUBSAMPLING = "420"  # what cameras write; edges are carried by luma, and files are a quarter smaller than 444
ESTIMATED_AT_ONCE = 10
"""Overlays whose depth is estimated together: the largest batch that an `Estimator` is given."""

Estimator = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""From overlays, RGB uint8 (N, S, S, 3), to their depth in grey values, uint8 (N, S, S); may raise UserError."""


@dataclass(frozen=True)
class Pair:
    """One foreground on one background; numbers start at 1."""

    out: Path
    background: int
    foreground: int

    @property
    def folder(self) -> Path:
        return self.out / f"bg{self.background}" / f"fg_{self.foreground}"

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}{PARTIAL_SUFFIX}")

    def is_whole(self) -> bool:
        """Has its final name, and no file lost its content with the power."""
        try:
            return all(
                sum(entry.stat().st_size > 0 for entry in os.scandir(self.folder / component)) == len(recipe.PLACEMENTS)
                for component in COMPONENTS
            )
        except FileNotFoundError:
            return False


def write_pair(pair: Pair, estimate: Estimator | None) -> int:
    """Write the tuples of a pair from what is prepared for it; returns their number."""
    for leftover in (pair.partial, pair.folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    for component in COMPONENTS:
        (pair.partial / component).mkdir(parents=True)
    unfinished = pair.out / UNFINISHED
    with np.load(unfinished / f"bg{pair.background}.npz") as prepared:
        image, depth = prepared["image"], prepared["depth"]
    with np.load(unfinished / f"fg_{pair.foreground}.npz") as prepared:
        sprites = [prepared[f"arr_{row}"] for row in range(len(recipe.SIZES))]
    at_once = ESTIMATED_AT_ONCE if estimate else 1
    for start in range(0, len(recipe.PLACEMENTS), at_once):
        placements = recipe.PLACEMENTS[start : start + at_once]
        overlays, masks = zip(*(place(image, sprites, placement) for placement in placements), strict=True)
        depths = estimate(np.stack(overlays)) if estimate else _pasted(depth, masks, placements)
        for placement, *pictures in zip(placements, overlays, depths, masks, strict=True):
            for component, picture in zip(COMPONENTS, pictures, strict=True):
                (pair.partial / component / f"{placement.number}.jpg").write_bytes(encode(picture))
    pair.partial.rename(pair.folder)
    return len(recipe.PLACEMENTS)


def _pasted(
    background: NDArray[np.uint8], masks: Iterable[NDArray[np.uint8]], placements: Iterable[recipe.Placement]
) -> Iterator[NDArray[np.uint8]]:
    """The depth of the background with an object in it, for each mask and its placement."""
    for mask, placement in zip(masks, placements, strict=True):
        yield recipe.paste_depth(background, mask, placement.base)


def scale_foreground(foreground: Image.Image, image_side: int) -> list[NDArray[np.uint8]]:
    """The sprites of the four rows, RGBA uint8 (h, w, 4) with straight alpha, resized with premultiplied alpha."""
    return [
        np.asarray(foreground.resize(recipe.scaled_size(*foreground.size, size, image_side), Image.Resampling.HAMMING))
        for size in recipe.SIZES
    ]


def place(
    background: NDArray[np.uint8], sprites: Sequence[NDArray[np.uint8]], placement: recipe.Placement
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Overlay, RGB uint8 (S, S, 3), and mask, uint8 (S, S), of one placement of the sprites of `scale_foreground`."""
    sprite = sprites[placement.row]
    if placement.mirrored:
        sprite = sprite[:, ::-1]
    height, width = sprite.shape[:2]
    return recipe.paste(background, sprite, recipe.pixel_box(placement, width, height, len(background)))


def encode(picture: NDArray[np.uint8]) -> bytes:
    """A picture as JPEG: RGB uint8 (h, w, 3), or grey uint8 (h, w)."""
    if picture.ndim == 2:
        data = simplejpeg.encode_jpeg(picture[:, :, None], JPEG_QUALITY, "GRAY", "Gray")
    else:
        data = simplejpeg.encode_jpeg(picture, JPEG_QUALITY, "RGB", CHROMA_SUBSAMPLING)
    return bytes(data)
