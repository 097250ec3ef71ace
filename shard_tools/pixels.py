"""Bytes of an image file to pixels and back, whole and strict. Knows nothing of tuples, shards or files."""

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shard_tools.checks import MAX_PIXELS, READABLE_FORMATS

Pixels = NDArray[np.uint8]

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of grey with 16 bits (a 16-bit PNG is "I" before Pillow 10, "I;16" since)."""

GRAY_TOLERANCE = 32
"""How far the channels of a grey picture may lie apart after a JPEG has rounded its colours."""


def decode_rgb(data: bytes) -> Pixels:
    """Decode to uint8 (H, W, 3). Raises ValueError saying what is wrong with the data."""
    return _decode(data, "RGB", "RGB")


def decode_gray(data: bytes) -> Pixels:
    """Decode to uint8 (H, W); colour becomes luma (ITU-R 601), 16 bits keep their upper 8. Raises ValueError."""
    pixels = _decode(data, "GRAY", "L")
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def _decode(data: bytes, colorspace: str, mode: str) -> Pixels:
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}×{height} pixels are more than {MAX_PIXELS:,}")
            if colour not in ("CMYK", "YCCK"):
                decoded: Pixels = simplejpeg.decode_jpeg(data, colorspace)
                return decoded
        except ValueError as error:
            raise ValueError(f"damaged JPEG ({error})") from None
    image = open_image(data)
    if image.mode in SIXTEEN_BIT_MODES:
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return np.asarray(image.convert(mode))


def open_image(data: bytes) -> Image.Image:
    """Decode with Pillow, turned upright as EXIF says. Raises ValueError saying what is wrong with the data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=READABLE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS:,}")
                image.load()
                return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise whatever their parsing hits
        raise ValueError(str(error) or type(error).__name__) from None


def gray_channels_differ(data: bytes) -> bool:
    """Whether an image that is to be read as grey has pixels in colour. Raises ValueError."""
    if data[:2] == b"\xff\xd8" and simplejpeg.decode_jpeg_header(data)[2] == "Gray":
        return False
    image = open_image(data)
    if image.mode in ("1", "L", "LA", "F", *SIXTEEN_BIT_MODES):
        return False
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() > GRAY_TOLERANCE)
