"""Is this the whole of a readable image? Looks at bytes in memory; decodes pixels only where nothing else tells."""

import io
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError
from pydantic.dataclasses import dataclass

from shard_tools.components import MAX_PIXELS

EXTENSIONS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpg"),
    ".png": "png",
    ".webp": "webp",
    **dict.fromkeys((".tif", ".tiff"), "tif"),
    ".bmp": "bmp",
    ".gif": "gif",
    ".pgm": "pgm",
    ".ppm": "ppm",
    ".tga": "tga",
    **dict.fromkeys((".jp2", ".j2k"), "jp2"),
    ".avif": "avif",
}
"""File suffixes in lower case that are taken for images, and the extension that each has in a shard."""

PILLOW_FORMATS = {
    "jpg": ("JPEG", "MPO"),
    "png": ("PNG",),
    "webp": ("WEBP",),
    "tif": ("TIFF",),
    "bmp": ("BMP",),
    "gif": ("GIF",),
    "pgm": ("PPM",),
    "ppm": ("PPM",),
    "tga": ("TGA",),
    "jp2": ("JPEG2000",),
    "avif": ("AVIF",),
}
"""Pillow's names of the formats that a file of each extension may have."""

READABLE_FORMATS = tuple(sorted({names[0] for names in PILLOW_FORMATS.values()}))
"""What Pillow may try on unknown bytes; none of these runs another program, as EPS does."""

Kind = Literal[
    "missing", "unreadable", "empty", "truncated", "damaged", "no image", "other format", "too large",
    "rotated", "sizes differ", "coloured", "changed",
]  # fmt: skip
"""What can be wrong with a file."""

ORIENTATIONS = {
    2: "mirrored", 3: "turned by 180°", 4: "mirrored upside down", 5: "mirrored and turned by 90°",
    6: "turned by 90°", 7: "mirrored and turned by 270°", 8: "turned by 270°",
}  # fmt: skip
"""The EXIF orientations but the upright one, 1."""

FIRST_ON_ITS_SIDE = 5
"""From this EXIF orientation on, width and height change places."""

_EXIF_ORIENTATION = 0x0112
_EXIF_START = b"Exif\0\0"
_EXIF_MARKS = {"JPEG": _EXIF_START, "MPO": _EXIF_START, "PNG": b"eXIf", "WEBP": b"EXIF", "TIFF": b""}
"""What a file of each format has in it where it has EXIF data; a TIFF may always have."""
_NOT_VERIFIED = ("TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000", "AVIF")
"""Formats of which Pillow's `verify` looks at nothing."""
_APP1, _SCAN, _FILL = 0xE1, 0xDA, 0xFF
_SCAN_START = b"\xff\xda"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_END_BYTES = 2**16
"""How far before the end of a file the end of its JPEG is looked for."""
_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}


class ImageInfo(NamedTuple):
    """What the header of an image says: size in pixels, Pillow's name of the colour mode, EXIF orientation (1..8).

    The size is that of the stored pixels, before they are turned by the orientation.
    """

    width: int
    height: int
    mode: str
    orientation: int = 1


class Flaw(NamedTuple):
    """What is wrong with a file: its kind, and a text that says more."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the tuple `key` cannot be packed: the `file` (relative to the source's root) and what is wrong with it."""

    key: str
    file: str
    kind: Kind
    text: str


def inspect_image(data: bytes, extension: str) -> ImageInfo | Flaw:
    """What the header of the image in `data` says, or what is wrong with it; never raises.

    `extension` is that of EXTENSIONS which the file's name promises. JPEGs must begin and end with their markers
    (zero bytes behind the end are tolerated); PNG and WebP go through Pillow's `verify`; the other formats, of which
    it sees nothing, are decoded.
    """
    if not data:
        return Flaw("empty", "empty file (0 bytes)")
    return _inspect_jpeg(data) if extension == "jpg" else _inspect_with_pillow(data, extension)


class JpegHeaders:
    """Inspects JPEGs of one kind. Their headers are mostly equal byte for byte; one like the last is not read again."""

    def __init__(self) -> None:
        self._header = b""
        self._info = ImageInfo(0, 0, "")

    def inspect(self, data: bytes) -> ImageInfo | Flaw:
        """The same as `inspect_image(data, "jpg")`."""
        if self._header and data.startswith(self._header) and data.endswith(_JPEG_END):
            return self._info
        info = inspect_image(data, "jpg")
        if isinstance(info, ImageInfo):
            self._header, self._info = data[: _header_end(data)], info
        return info


def _inspect_jpeg(data: bytes) -> ImageInfo | Flaw:
    if not data.startswith(_JPEG_START):
        return _inspect_with_pillow(data, "jpg")
    if not data.endswith(_JPEG_END) and not data.rstrip(b"\0").endswith(_JPEG_END):
        return _without_end(data)
    if _has_exif(data):
        return _inspect_with_pillow(data, "jpg")
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _inspect_with_pillow(data, "jpg")
    return _too_large(width, height) or ImageInfo(width, height, _JPEG_MODES[colour])


def _without_end(data: bytes) -> Flaw:
    """What to say of a JPEG that does not end with its marker; the one of a thumbnail lies before the first scan."""
    scan = _header_end(data)
    end = data.rfind(_JPEG_END, max(scan, len(data) - _END_BYTES)) if scan else -1
    if end < 0:
        return Flaw("truncated", f"truncated JPEG (no end marker after {len(data):,} bytes)")
    return Flaw("damaged", f"JPEG with {len(data) - end - 2:,} bytes behind its end; save it again")


def _too_large(width: int, height: int) -> Flaw | None:
    if width * height <= MAX_PIXELS:
        return None
    return Flaw("too large", f"{width}×{height} pixels, more than the limit of {MAX_PIXELS:,}")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments of a JPEG, up to the first scan; stops where there is no marker."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        if data[at + 1] == _FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at, end
        at = end


def _header_end(data: bytes) -> int:
    """Where the first scan of a JPEG begins, behind its marker; 0 where there is none."""
    end = max((end for _, _, end in _segments(data)), default=2)
    return end + 2 if data.startswith(_SCAN_START, end) else 0


def _has_exif(data: bytes) -> bool:
    return any(marker == _APP1 and data.startswith(_EXIF_START, start + 4) for marker, start, _ in _segments(data))


def _inspect_with_pillow(data: bytes, extension: str) -> ImageInfo | Flaw:
    expected = PILLOW_FORMATS[extension]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=READABLE_FORMATS) as image:
                info = ImageInfo(image.width, image.height, image.mode)
                if image.format not in expected:
                    return Flaw("other format", f"holds a {image.format} image, but its name says {expected[0]}")
                if flaw := _too_large(image.width, image.height):
                    return flaw
                image.verify()
            return _look_further(data, info)
    except UnidentifiedImageError:
        is_jpeg = data.startswith(_JPEG_START[:2])
        return Flaw("damaged", "damaged JPEG header") if is_jpeg else Flaw("no image", "not an image that can be read")
    except Image.DecompressionBombError:
        return Flaw("too large", f"more pixels than the limit of {MAX_PIXELS:,}")
    except Exception as error:  # Pillow's decoders raise whatever their parsing hits
        return Flaw("damaged", f"damaged {expected[0]} ({error})")


def _look_further(data: bytes, info: ImageInfo) -> ImageInfo:
    """`info` with the orientation, after the pixels were decoded where `verify` saw nothing. Raises as Pillow does."""
    with Image.open(io.BytesIO(data), formats=READABLE_FORMATS) as image:
        orientation = exif_orientation(image, data)
        if image.format in _NOT_VERIFIED:
            image.load()
            # A TIFF is upright from here on, and with some versions of Pillow its size was so before.
            width, height = image.size if orientation < FIRST_ON_ITS_SIDE else image.size[::-1]
            info = info._replace(width=width, height=height)
    return info._replace(orientation=orientation)


def exif_orientation(image: Image.Image, data: bytes) -> int:
    """The orientation, 1..8, of an `image` opened from `data`; 1 where there is no EXIF, whatever else may tell one.

    Decodes a PNG that has EXIF data. Raises what Pillow's decoders do.
    """
    mark = _EXIF_MARKS.get(image.format or "")
    if mark is None or mark not in data:
        return 1
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in ORIENTATIONS else 1
