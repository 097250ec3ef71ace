"""Image bytes into a slot of a batch. Holds no GIL while libjpeg-turbo works, so threads decode side by side."""

import io
import threading
from collections import OrderedDict

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shard_tools.checks import MAX_PIXELS

Pixels = NDArray[np.uint8]


def decoded_size(native: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) at which a JPEG of `native` (height, width) is decoded for images of side `size`.

    The smallest multiple of 1/8 of the native size that still covers `size`, at most the native size: libjpeg-turbo
    decodes at such scales directly from the DCT coefficients, with less work than at full size.
    """
    for eighths in range(1, 9):
        height, width = (-(-side * eighths // 8) for side in native)
        if height >= size and width >= size:
            return height, width
    return native


def decode_into(data: bytes, slot: Pixels) -> None:
    """Decode an image into `slot`, shape (H, W, 3) for RGB or (H, W, 1) for gray, uint8.

    A JPEG whose `decoded_size` is that of the slot is written straight into it; anything else goes through an
    antialiased resize. 16-bit gray keeps its upper 8 bits. Raises ValueError saying what is wrong with the data.
    """
    height, width, channels = slot.shape
    if data[:2] == b"\xff\xd8":
        try:
            native_height, native_width, _, _ = simplejpeg.decode_jpeg_header(data)
            if native_height * native_width > MAX_PIXELS:
                raise ValueError(f"{native_width}×{native_height} pixels are more than {MAX_PIXELS}")
            scaled = decoded_size((native_height, native_width), min(height, width))
            colorspace = "RGB" if channels == 3 else "GRAY"
            if scaled == (height, width):
                simplejpeg.decode_jpeg(data, colorspace, min_height=height, min_width=width, buffer=slot)
                return
            pixels = simplejpeg.decode_jpeg(data, colorspace, min_height=height, min_width=width)
            image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        except ValueError as error:
            image = _open_with_pillow(data, channels, str(error))
    else:
        image = _open_with_pillow(data, channels, "no JPEG")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    slot[...] = np.asarray(image).reshape(slot.shape)


def _open_with_pillow(data: bytes, channels: int, otherwise: str) -> Image.Image:
    """What simplejpeg does not read (PNG, WebP, CMYK JPEG); ValueError also gives simplejpeg's reason."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS}")
            if image.mode.startswith("I;16") or image.mode == "I":
                upper = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                return upper.convert("RGB") if channels == 3 else upper
            return image.convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError:
        raise ValueError(f"not an image that can be read ({otherwise})") from None
    except Exception as error:  # Pillow's decoders raise whatever their parsing hits
        raise ValueError(f"{error} ({otherwise})") from None


class BackgroundCache:
    """Decoded images kept by their content, least recently used first out, at most `max_bytes` in all.

    One background is shared by thousands of tuples, as equal bytes; equal bytes are decoded once. Thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._images: OrderedDict[bytes, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def decode_into(self, data: bytes, slot: Pixels) -> None:
        """Like the function `decode_into`, without decoding what is kept. All slots have one shape."""
        with self._lock:
            image = self._images.get(data)
            if image is not None:
                self._images.move_to_end(data)
        if image is not None:
            slot[...] = image
            return
        decode_into(data, slot)
        cost = len(data) + slot.nbytes
        if cost > self._max_bytes:
            return
        with self._lock:
            if data not in self._images:
                self._images[data] = slot.copy()
                self._bytes += cost
            while self._bytes > self._max_bytes:
                dropped, pixels = self._images.popitem(last=False)
                self._bytes -= len(dropped) + pixels.nbytes
