"""Where an object is placed on a background, how large, how far away, and what the pasted pixels are.

Pure arithmetic; never touches files. A level camera looks at a flat floor whose horizon lies at `HORIZON`. An object
of constant height, standing on the floor, then spans a part of the image that is proportional to the distance between
the horizon and the line it stands on. Both commands that make tuples, `sample` and `compose`, place by this recipe.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HORIZON = 0.40
"""Height of the horizon, as a fraction of the image's height from the top."""

SIZES = (0.60, 0.60 - 0.20 / 3, 0.60 - 0.40 / 3, 0.40)
"""Long side of the object in each row, nearest first, as a fraction of the image's side."""

COLUMNS = 5

CAMERA_HEIGHT_METRES = 1.2
FOCAL_LENGTH = 1.0
"""Of the camera, in image sides."""

FAR_METRES = 10.0
"""Distance along the optical axis that is depth 1.0."""

MIN_SIZE, MAX_SIZE, SIZE_MULTIPLE = 16, 4096, 8
"""Limits of an image's side in pixels; the network halves it three times."""


@dataclass(frozen=True)
class Placement:
    """One of the 40 places of an object. Fractions are of the image's side, from the left and from the top."""

    number: int
    """1..40, the name of the files; 21..40 are the mirror images of 1..20."""
    row: int
    """0 (nearest, largest) .. 3 (farthest, smallest)."""
    column: int
    """0 (left) .. 4 (right)."""
    mirrored: bool
    size: float
    """Long side of the object."""
    base: float
    """The line that the object stands on."""
    centre: float
    """The middle of the object."""


class Box(NamedTuple):
    """Pixels left <= x < right, top <= y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


def base_line(size: float) -> float:
    """The line on which an object of this size stands so that all sizes belong to one object on one floor."""
    return HORIZON + 0.58 * size / SIZES[0]


def _placements() -> tuple[Placement, ...]:
    places: list[Placement] = []
    for mirrored in (False, True):
        for row, size in enumerate(SIZES):
            for column in range(COLUMNS):
                centre = size / 2 + (1 - size) * column / (COLUMNS - 1)
                places.append(Placement(len(places) + 1, row, column, mirrored, size, base_line(size), centre))
    return tuple(places)


PLACEMENTS = _placements()
"""All places, in the order of their numbers."""


def scaled_size(width: int, height: int, size: float, image_side: int) -> tuple[int, int]:
    """Width and height in pixels of an object whose long side is the fraction `size` of the image's side."""
    scale = size * image_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def pixel_box(placement: Placement, width: int, height: int, image_side: int) -> Box:
    """Where an object already scaled to `width` × `height` pixels lies; always inside the image."""
    left = round(placement.centre * image_side - width / 2)
    bottom = round(placement.base * image_side)
    return Box(left, bottom - height, left + width, bottom)


def paste(
    background: NDArray[np.uint8], sprite: NDArray[np.uint8], box: Box
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Composite `sprite`, RGBA uint8 (h, w, 4) with straight alpha, onto `background`, RGB uint8 (S, S, 3), at `box`.

    Returns the overlay, uint8 (S, S, 3), `sprite · alpha + background · (1 - alpha)` rounded to the nearest, and the
    mask, uint8 (S, S), which is alpha inside the box and 0 outside. `background` is left as it is.
    """
    inside = np.s_[box.top : box.bottom, box.left : box.right]
    mask = np.zeros(background.shape[:2], np.uint8)
    mask[inside] = sprite[:, :, 3]
    alpha = sprite[:, :, 3:].astype(np.uint16)
    overlay = background.copy()
    overlay[inside] = (sprite[:, :, :3] * alpha + background[inside] * (255 - alpha) + 127) // 255
    return overlay, mask


def paste_depth(depth: NDArray[np.uint8], mask: NDArray[np.uint8], base: float) -> NDArray[np.uint8]:
    """`depth`, uint8 (S, S), with the pixels where alpha is above 0.5 at the depth of the floor at line `base`."""
    return np.where(mask > 127, depth_to_bytes(np.float64(floor_depth(base))), depth)


def floor_distance(line: float) -> float:
    """Metres along the optical axis to the floor seen at height `line` of the image (fraction, below the horizon)."""
    return FOCAL_LENGTH * CAMERA_HEIGHT_METRES / (line - HORIZON)


def floor_depth(line: float) -> float:
    """Depth in [0, 1] of the floor seen at height `line` of the image: 0 at the camera, 1 from `FAR_METRES` on."""
    return min(1.0, floor_distance(line) / FAR_METRES) if line > HORIZON else 1.0


def ground_plane(image_side: int) -> NDArray[np.float64]:
    """Depth in [0, 1], shape (S, S), of an endless flat floor under a sky at depth 1, at the centres of pixels."""
    rows = [floor_depth((row + 0.5) / image_side) for row in range(image_side)]
    return np.repeat(np.array(rows)[:, None], image_side, axis=1)


def depth_to_bytes(depth: np.float64 | NDArray[np.float64]) -> NDArray[np.uint8]:
    """Depth in [0, 1] as the grey values that are stored, 0..255, rounded to the nearest."""
    return np.asarray(np.rint(depth * 255), np.uint8)
