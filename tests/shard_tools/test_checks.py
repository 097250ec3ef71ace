"""Whole images pass with their size and mode, anything else with a text that says what it is."""

import io

import numpy as np
import pytest
from PIL import Image

from shard_tools.checks import ImageInfo, inspect_image


def encode(image_format: str, mode: str = "RGB", **options: bool) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode: str) -> None:
    assert inspect_image(encode("JPEG", mode), "jpg") == ImageInfo(24, 16, mode)


def test_progressive_jpeg() -> None:
    assert inspect_image(encode("JPEG", progressive=True), "jpg") == ImageInfo(24, 16, "RGB")


def test_zero_bytes_behind_a_jpeg_are_tolerated() -> None:
    assert inspect_image(encode("JPEG") + bytes(100), "jpg") == ImageInfo(24, 16, "RGB")


@pytest.mark.parametrize(("image_format", "mode"), [("PNG", "1"), ("PNG", "I;16"), ("PNG", "RGBA"), ("WEBP", "RGB")])
def test_other_formats(image_format: str, mode: str) -> None:
    if mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(np.zeros((16, 24), np.uint16)).save(file, image_format)
        data = file.getvalue()
    else:
        data = encode(image_format, mode)
    assert inspect_image(data, image_format.lower()) == ImageInfo(24, 16, mode)


def with_height(jpeg: bytes, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + height.to_bytes(2, "big") * 2 + jpeg[at + 4 :]


@pytest.mark.parametrize(
    ("data", "extension", "text"),
    [
        (b"", "jpg", "empty file"),
        (b"not an image\n", "jpg", "not an image that can be read"),
        (encode("JPEG")[:-20], "jpg", "truncated JPEG"),
        (encode("JPEG")[:50], "jpg", "truncated JPEG"),
        (b"\xff\xd8\xff garbage \xff\xd9", "jpg", "damaged"),
        (encode("PNG"), "jpg", "holds a PNG image, but its name says JPEG"),
        (encode("JPEG"), "png", "holds a JPEG image, but its name says PNG"),
        (encode("PNG")[:200], "png", "damaged PNG"),
        (with_height(encode("JPEG"), 50_000), "jpg", "50000×50000 pixels, more than the limit"),
    ],
)
def test_problems_are_said(data: bytes, extension: str, text: str) -> None:
    found = inspect_image(data, extension)
    assert isinstance(found, str)
    assert text in found
