"""From depths, errors and masks to colours, always the same ones. Pure functions from arrays to arrays."""

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]

_NOT_FINITE = (255, 0, 255)

_VIRIDIS: NDArray[np.float64] = np.array(
    [
        (68, 1, 84),
        (71, 45, 123),
        (59, 82, 139),
        (44, 114, 142),
        (33, 145, 140),
        (40, 174, 128),
        (94, 201, 98),
        (173, 220, 48),
        (253, 231, 37),
    ],
    dtype=np.float64,
)
"""Matplotlib's map of that name, at nine places."""

_YELLOW_ORANGE_BROWN: NDArray[np.float64] = np.array(
    [
        (255, 255, 229),
        (255, 247, 188),
        (254, 227, 145),
        (254, 196, 79),
        (254, 153, 41),
        (236, 112, 20),
        (204, 76, 2),
        (153, 52, 4),
        (102, 37, 6),
    ],
    dtype=np.float64,
)
"""ColorBrewer's YlOrBr, sequential and safe for the colour-blind."""


def depth_colours(depth: NDArray[np.floating]) -> RGB:
    """Return the RGB colours, uint8 (…, 3), of depth values (…) clipped to [0, 1]; not finite is magenta."""
    return _through(_VIRIDIS, depth)


def error_colours(error: NDArray[np.floating]) -> RGB:
    """Return the RGB colours, uint8 (…, 3), pale to dark, of errors (…) clipped to [0, 1]; not finite is magenta."""
    return _through(_YELLOW_ORANGE_BROWN, error)


def greys(values: NDArray[np.floating]) -> RGB:
    """Return black to white, uint8 (…, 3), for values (…) clipped to [0, 1]; not finite is magenta."""
    shade = 255.0 * np.clip(np.nan_to_num(values), 0.0, 1.0)
    return _mark_not_finite(np.repeat(shade[..., np.newaxis], 3, axis=-1), values)


def _through(anchors: NDArray[np.float64], values: NDArray[np.floating]) -> RGB:
    position = np.clip(np.nan_to_num(values), 0.0, 1.0)
    places = np.linspace(0.0, 1.0, len(anchors))
    channels = [np.interp(position, places, channel) for channel in anchors.T]
    return _mark_not_finite(np.stack(channels, axis=-1), values)


def _mark_not_finite(colours: NDArray[np.floating], values: NDArray[np.floating]) -> RGB:
    return np.where(np.isfinite(values)[..., np.newaxis], np.rint(colours), _NOT_FINITE).astype(np.uint8)
