"""Image bytes into a slot of a batch. Holds no GIL while libjpeg-turbo works, so threads decode side by side."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shard_tools.components import MAX_PIXELS

Pixels = NDArray[np.uint8]
Encoded = bytes | memoryview
Decoder = Callable[[Encoded, Pixels], None]
Decode = Literal["fast", "exact"]

RESIZE = Image.Resampling.BILINEAR
"""Antialiased, as the resize on the device is."""

_COLORSPACES = {3: "RGB", 1: "GRAY"}


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


def decode_into(data: Encoded, slot: Pixels) -> None:
    """Decode an image into `slot`, shape (H, W, 3) for RGB or (H, W, 1) for gray, uint8.

    A JPEG whose `decoded_size` is that of the slot is written straight into it; anything else goes through an
    antialiased resize. 16-bit gray keeps its upper 8 bits. Raises ValueError saying what is wrong with the data.
    """
    height, width, channels = slot.shape
    try:
        decoded = simplejpeg.decode_jpeg(data, _COLORSPACES[channels], min_height=height, min_width=width, buffer=slot)
        if decoded.shape == slot.shape:
            return
    except ValueError:  # no JPEG, damaged, or not of the slot's size: below it is looked at more closely
        pass
    _decode_resized(data, slot)


def decode_exactly(data: Encoded, slot: Pixels) -> None:
    """As `decode_into`, but with Pillow alone: its pixels at full size, then its antialiased resize."""
    _fit(_open_with_pillow(data, slot.shape[2]), slot)


DECODERS: dict[Decode, Decoder] = {"fast": decode_into, "exact": decode_exactly}


def decode_batch(decode: Decoder, images: Sequence[Encoded], slots: Pixels) -> dict[int, str]:
    """Decode images into as many slots, (n, H, W, C); what is wrong with which, by row."""
    wrong: dict[int, str] = {}
    begun = 0
    while begun < len(images):
        decoded = _decode_run(images[begun:], slots[begun:]) if decode is decode_into else []
        others = [begun + row for row, pixels in enumerate(decoded) if pixels.shape != slots.shape[1:]]
        begun += len(decoded)
        if begun < len(images):
            others.append(begun)
            begun += 1
        for row in others:
            try:
                decode(images[row], slots[row])
            except ValueError as error:
                wrong[row] = str(error)  # not the error, whose frames hold on to all that is open here
    return wrong


def _decode_run(images: Sequence[Encoded], slots: Pixels) -> list[Pixels]:
    """What the first images decode to, up to one that is no JPEG or too large for a slot.

    All calls come from a loop in C, so that between two of them the interpreter's lock, for which other threads wait,
    is held as briefly as can be.
    """
    _, height, width, channels = slots.shape
    fixed = map(repeat, (_COLORSPACES[channels], False, False, height, width, 1.0))
    decoded: list[Pixels] = []
    with suppress(ValueError):
        decoded.extend(map(simplejpeg.decode_jpeg, images, *fixed, slots))
    return decoded


def _decode_resized(data: Encoded, slot: Pixels) -> None:
    """An image that does not decode to the size of the slot by itself."""
    height, width, channels = slot.shape
    if bytes(data[:2]) != b"\xff\xd8":
        decode_exactly(data, slot)
        return
    try:
        native_height, native_width, _, _ = simplejpeg.decode_jpeg_header(data)
        if native_height * native_width > MAX_PIXELS:
            raise ValueError(f"{native_width}×{native_height} pixels are more than {MAX_PIXELS}")
        pixels = simplejpeg.decode_jpeg(data, _COLORSPACES[channels], min_height=height, min_width=width)
        image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    except ValueError as error:
        image = _open_with_pillow(data, channels, f" ({error})")
    _fit(image, slot)


def _fit(image: Image.Image, slot: Pixels) -> None:
    height, width, _ = slot.shape
    if image.size != (width, height):
        image = image.resize((width, height), RESIZE)
    slot[...] = np.asarray(image).reshape(slot.shape)


def _open_with_pillow(data: Encoded, channels: int, otherwise: str = "") -> Image.Image:
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
        raise ValueError(f"not an image that can be read{otherwise}") from None
    except Exception as error:  # Pillow's decoders raise whatever their parsing hits
        raise ValueError(f"{error}{otherwise}") from None


_Name = tuple[tuple[int, ...], int, bytes]


class BackgroundCache:
    """Decoded images kept by their content, least recently used first out, at most `max_bytes` in all.

    One background is shared by thousands of tuples, as equal bytes; equal bytes are decoded once. Thread-safe.
    """

    def __init__(self, max_bytes: int, decode: Decoder = decode_into) -> None:
        self._max_bytes = max_bytes
        self._decode = decode
        self._bytes = 0
        self._images: OrderedDict[_Name, tuple[bytes, Pixels]] = OrderedDict()
        self._lock = threading.Lock()

    def decode_into(self, data: Encoded, slot: Pixels) -> None:
        """Like the function `decode_into`, without decoding what is kept."""
        middle = len(data) // 2
        # To compare all bytes with one candidate is several times faster than to hash them.
        name = (slot.shape, len(data), bytes(data[middle : middle + 64]))
        content, image = self._images.get(name, _NOTHING)
        if image is not None and content.startswith(data):
            with self._lock:
                if name in self._images:
                    self._images.move_to_end(name)
            slot[...] = image
            return
        self._decode(data, slot)
        self._keep(name, bytes(data), slot)

    def _keep(self, name: _Name, content: bytes, slot: Pixels) -> None:
        cost = len(content) + slot.nbytes
        if cost > self._max_bytes:
            return
        with self._lock:
            if name not in self._images:
                self._images[name] = content, slot.copy()
                self._bytes += cost
            while self._bytes > self._max_bytes:
                _, (dropped, pixels) = self._images.popitem(last=False)
                self._bytes -= len(dropped) + pixels.nbytes


_NOTHING: tuple[bytes, None] = b"", None
