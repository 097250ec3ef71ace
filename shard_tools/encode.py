"""Images of a source encoded anew at the size of training. Bytes in, bytes out; never touches disk."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from shard_tools.checks import ImageInfo
from shard_tools.errors import UserError
from shard_tools.pixels import (
    SIXTEEN_BIT_MODES,
    decode_gray,
    decode_rgb,
    open_image,
    to_gray,
    to_rgb,
    to_sixteen_bits,
)

MIN_SIZE, MAX_SIZE = 8, 4096
DEFAULT_QUALITY = 92
CHROMA_SUBSAMPLING = "420"


@dataclass(frozen=True, slots=True)
class Encoding:
    """Images become `size` × `size` pixels, JPEGs of `quality` 1..100; masks become PNG, which loses nothing."""

    size: int
    quality: int = DEFAULT_QUALITY

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise UserError(f"--size {self.size}: expected {MIN_SIZE} to {MAX_SIZE} pixels")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: expected 1 to 100")

    def extension(self, component: str, source_extension: str) -> str:
        """The extension of what `encode` makes: depth stays lossless where the source's format is."""
        lossless = component == "mask" or (component == "depth" and source_extension != "jpg")
        return "png" if lossless else "jpg"


def encode(data: bytes, info: ImageInfo, component: str, extension: str, encoding: Encoding) -> tuple[bytes, ImageInfo]:
    """Encode an image at the size of `encoding`, upright; returns the bytes and what their header says.

    Pictures are resized with Lanczos, depth and masks without overshoot (triangle and box filter). 16 bits of depth
    stay 16 bits. Raises ValueError saying what is wrong with `data`, and NotGrayError, of its kind, for depth and masks
    whose values would be lost.
    """
    side = (encoding.size, encoding.size)
    if component in ("bg", "fgbg"):
        picture = _resize(_open(data, info, "RGB"), side, Image.Resampling.LANCZOS)
        return _jpeg(np.asarray(picture), "RGB", encoding.quality), ImageInfo(*side, "RGB")
    if component == "depth" and info.mode in SIXTEEN_BIT_MODES:
        values = Image.fromarray(to_sixteen_bits(open_image(data)).astype(np.float32))
        resized = np.asarray(_resize(values, side, Image.Resampling.BILINEAR)).round().astype(np.uint16)
        return _png(Image.fromarray(resized)), ImageInfo(*side, "I;16")
    filter_ = Image.Resampling.BILINEAR if component == "depth" else Image.Resampling.BOX
    gray = _resize(_open(data, info, "L"), side, filter_)
    if encoding.extension(component, extension) == "png":
        return _png(gray), ImageInfo(*side, "L")
    return _jpeg(np.asarray(gray)[:, :, None], "GRAY", encoding.quality), ImageInfo(*side, "L")


def _open(data: bytes, info: ImageInfo, mode: str) -> Image.Image:
    if info.orientation == 1:
        return Image.fromarray(decode_rgb(data) if mode == "RGB" else decode_gray(data))
    upright = open_image(data)
    return Image.fromarray(to_rgb(upright) if mode == "RGB" else to_gray(upright))


def _resize(image: Image.Image, side: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == side else image.resize(side, resampling)


def _jpeg(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], colorspace: str, quality: int) -> bytes:
    subsampling = CHROMA_SUBSAMPLING if colorspace == "RGB" else "Gray"
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorspace, subsampling))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=6)
    return file.getvalue()
