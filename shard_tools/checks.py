"""Is this the whole of a readable image? Looks at bytes in memory; never decodes pixels and never touches disk."""

import io
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 2**27
EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""File suffixes in lower case that are taken for images, and the extension that each has in a shard."""

_PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}


class ImageInfo(NamedTuple):
    """What the header of an image says: width and height in pixels, and Pillow's name of the colour mode."""

    width: int
    height: int
    mode: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the tuple `key` cannot be packed: the `file` (relative to the source) and what is wrong with it."""

    key: str
    file: str
    text: str


def inspect_image(data: bytes, extension: str) -> ImageInfo | str:
    """The size and mode of the image in `data`, or the text of what is wrong with it; never raises.

    `extension` is that of EXTENSIONS which the file's name promises. JPEGs must begin and end with their markers
    (zero bytes behind the end are tolerated); the other formats go through Pillow's `verify`.
    """
    if not data:
        return "empty file (0 bytes)"
    info = _inspect_jpeg(data) if extension == "jpg" else _inspect_with_pillow(data, extension)
    if isinstance(info, ImageInfo) and info.width * info.height > MAX_PIXELS:
        return f"{info.width}×{info.height} pixels, more than the limit of {MAX_PIXELS:,}"
    return info


def _inspect_jpeg(data: bytes) -> ImageInfo | str:
    if not data.startswith(_JPEG_START):
        return _inspect_with_pillow(data, "jpg")
    if not data.endswith(_JPEG_END) and not data.rstrip(b"\0").endswith(_JPEG_END):
        return f"truncated JPEG (no end marker after {len(data):,} bytes)"
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _inspect_with_pillow(data, "jpg")
    return ImageInfo(width, height, _JPEG_MODES[colour])


def _inspect_with_pillow(data: bytes, extension: str) -> ImageInfo | str:
    expected = _PILLOW_FORMATS[extension]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                info = ImageInfo(image.width, image.height, image.mode)
                found = image.format
                image.verify()
    except UnidentifiedImageError:
        return "not an image that can be read" if data[:2] != _JPEG_START[:2] else "damaged JPEG header"
    except Image.DecompressionBombError:
        return f"more pixels than the limit of {MAX_PIXELS:,}"
    except Exception as error:  # Pillow's decoders raise whatever their parsing hits
        return f"damaged {expected} ({error})"
    if found != expected:
        return f"holds a {found} image, but its name says {expected}"
    return info
