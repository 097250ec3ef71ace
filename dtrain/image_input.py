"""An image that a user gives, as file, bytes, Pillow image or array, to upright RGB pixels. Writes nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shard_tools.errors import UserError
from shard_tools.pixels import Pixels, decode_rgb, open_image, to_rgb

ImageInput = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path; the bytes of a file in a shard; a Pillow image; or RGB pixels, uint8 (H, W, 3)."""


def read_rgb(image: ImageInput, what: str) -> Pixels:
    """Pixels, uint8 (H, W, 3); of 16 bits the upper 8. A file on disk is turned upright as its EXIF says.

    Anything else is taken as it is: training does not turn what is in shards. Raises UserError that names the file, or
    else `what`.
    """
    if isinstance(image, str | Path):
        data, what = _read(Path(image)), str(image)
        return _decoded(lambda: _rgb(open_image(data)), what)
    if isinstance(image, bytes):
        return _decoded(lambda: decode_rgb(image), what)
    if isinstance(image, Image.Image):
        return _decoded(lambda: _rgb(image), what)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"{what}: expected a path, a Pillow image or a uint8 array (H, W, 3), got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"{what}: expected a uint8 array (H, W, 3), got {image.dtype} {image.shape}")
    return image


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None


def _decoded(decode: Callable[[], Pixels], what: str) -> Pixels:
    try:
        return decode()
    except (ValueError, OSError) as error:
        raise UserError(f"{what}: can't be read as an image: {error}") from None


def _rgb(image: Image.Image) -> Pixels:
    if image.mode == "F":
        raise ValueError("it is of floating point; expected 8 or 16 bits a channel")
    return to_rgb(image)
