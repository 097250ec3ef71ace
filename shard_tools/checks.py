"""Is this the whole of a readable image? Looks at bytes in memory; never touches disk, and decodes no pixels."""

import io
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError
from pydantic.dataclasses import dataclass

MAX_PIXELS = 2**27
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

_EXIF_ORIENTATION = 0x0112
_EXIF_START = b"Exif\0\0"
_EXIF_MARKS = {"JPEG": _EXIF_START, "MPO": _EXIF_START, "PNG": b"eXIf", "WEBP": b"EXIF", "TIFF": b""}
"""What a file of each format has in it where it has EXIF data; a TIFF may always have."""
_APP1, _SCAN = 0xE1, 0xDA
_SCAN_START = b"\xff\xda"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}


class ImageInfo(NamedTuple):
    """What the header of an image says: size in pixels, Pillow's name of the colour mode, EXIF orientation (1..8)."""

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
    (zero bytes behind the end are tolerated); the other formats go through Pillow's `verify`.
    """
    if not data:
        return Flaw("empty", "empty file (0 bytes)")
    info = _inspect_jpeg(data) if extension == "jpg" else _inspect_with_pillow(data, extension)
    if isinstance(info, ImageInfo) and info.width * info.height > MAX_PIXELS:
        return Flaw("too large", f"{info.width}×{info.height} pixels, more than the limit of {MAX_PIXELS:,}")
    return info


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
        return Flaw("truncated", f"truncated JPEG (no end marker after {len(data):,} bytes)")
    if _has_exif(data):
        return _inspect_with_pillow(data, "jpg")
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _inspect_with_pillow(data, "jpg")
    return ImageInfo(width, height, _JPEG_MODES[colour])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments of a JPEG, up to the first scan; stops where there is no marker."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
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
                found = image.format
                image.verify()
            info = info._replace(orientation=_orientation(data, found))
    except UnidentifiedImageError:
        if data.startswith(_JPEG_START[:2]):
            return Flaw("damaged", "damaged JPEG header")
        return Flaw("no image", "not an image that can be read")
    except Image.DecompressionBombError:
        return Flaw("too large", f"more pixels than the limit of {MAX_PIXELS:,}")
    except Exception as error:  # Pillow's decoders raise whatever their parsing hits
        return Flaw("damaged", f"damaged {expected[0]} ({error})")
    if found not in expected:
        return Flaw("other format", f"holds a {found} image, but its name says {expected[0]}")
    return info


def _orientation(data: bytes, image_format: str | None) -> int:
    mark = _EXIF_MARKS.get(image_format or "")
    if mark is None or mark not in data:
        return 1
    with Image.open(io.BytesIO(data), formats=READABLE_FORMATS) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in ORIENTATIONS else 1
