"""Turns pictures into data URIs of bounded size. Reads picture files; knows nothing of the page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: `uri` is a data: URI; `width` and `height` in pixels."""

    uri: str
    width: int
    height: int


def read_picture(path: Path) -> Image.Image:
    """Return a PNG file as RGB. Raises OSError if it is not a whole picture that Pillow reads and takes for safe."""
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            return opened.convert("RGB")
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(f"{path.name}: {error}") from error


def embed_picture(image: Image.Image, max_bytes: int) -> Picture:
    """Return an RGB picture as PNG if that has at most `max_bytes`; else as JPEG, and smaller if that must be."""
    kind, data = "png", _encode(image, "PNG", optimize=image.width * image.height < 100_000)
    if len(data) > max_bytes:
        kind, data = "jpeg", _encode(image, "JPEG", quality=88, subsampling=0)
    while len(data) > max_bytes and min(image.size) > 1:
        size = (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))
        image = image.resize(size, Image.Resampling.LANCZOS)
        data = _encode(image, "JPEG", quality=88, subsampling=0)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return Picture(uri, image.width, image.height)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
