"""Bytes of an image file to pixels and back, whole and strict. Knows nothing of tuples, shards or files."""

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shard_tools.checks import READABLE_FORMATS, exif_orientation
from shard_tools.components import MAX_PIXELS

Pixels = NDArray[np.uint8]

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of grey with 16 bits (a 16-bit PNG is "I" before Pillow 10, "I;16" since)."""

_TRANSPARENT_BY_VALUE = ("1", "L", "RGB", *SIXTEEN_BIT_MODES)
"""Pillow's modes in which transparent pixels differ from others without alpha, too."""

GRAY_TOLERANCE = 32
"""How far the channels of a grey picture may lie apart after a JPEG has rounded its colours."""


GRAY_EXPECTED = "expected one grey channel of 8 or 16 bits; save it so"
"""What to say of values that grey of 16 bits cannot hold."""


class NotGrayError(ValueError):
    """Raised for an image whose values would be lost if it was read as grey."""


def decode_rgb(data: bytes) -> Pixels:
    """Decode to uint8 (H, W, 3). Raises ValueError saying what is wrong with the data."""
    pixels = _decode_jpeg(data, "RGB")
    return to_rgb(open_image(data)) if pixels is None else pixels


def decode_gray(data: bytes) -> Pixels:
    """Decode to uint8 (H, W); colour becomes luma (ITU-R 601), 16 bits keep their upper 8.

    Raises ValueError, and of its kind NotGrayError as `to_gray` does.
    """
    pixels = _decode_jpeg(data, "GRAY")
    return to_gray(open_image(data)) if pixels is None else pixels[..., 0]


def _decode_jpeg(data: bytes, colorspace: str) -> Pixels | None:
    """The pixels (H, W, channels) of a JPEG; None for what only Pillow reads. Raises ValueError."""
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
    return None


def to_rgb(image: Image.Image) -> Pixels:
    """An opened image as uint8 (H, W, 3); of 16 bits the upper 8. Raises ValueError."""
    return np.asarray(_eight_bits(image).convert("RGB"))


def to_gray(image: Image.Image) -> Pixels:
    """An opened image as uint8 (H, W); colour becomes luma, 16 bits keep their upper 8.

    Raises NotGrayError for floating point, for numbers beyond 16 bits, and where alpha is not opaque throughout.
    """
    if image.mode == "F":
        raise NotGrayError(f"is of floating point, which grey of 8 bits cannot hold; {GRAY_EXPECTED}")
    if (
        image.mode not in _TRANSPARENT_BY_VALUE
        and image.has_transparency_data
        and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
    ):
        raise NotGrayError(f"is partly transparent, which would be lost; {GRAY_EXPECTED}")
    return np.asarray(_eight_bits(image).convert("L"))


def to_sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    """An opened image of SIXTEEN_BIT_MODES as uint16 (H, W). Raises NotGrayError for numbers beyond 0..65535."""
    values = np.asarray(image)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise NotGrayError(f"has values from {values.min()} to {values.max()}; {GRAY_EXPECTED}")
    return values.astype(np.uint16)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode not in SIXTEEN_BIT_MODES:
        return image
    return Image.fromarray((to_sixteen_bits(image) >> 8).astype(np.uint8))


def open_image(data: bytes) -> Image.Image:
    """Decode with Pillow, turned upright as EXIF says. Raises ValueError saying what is wrong with the data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=READABLE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS:,}")
                image.load()
                return image if exif_orientation(image, data) == 1 else ImageOps.exif_transpose(image)
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
