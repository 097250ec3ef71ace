"""Whole images pass with their size and mode, anything else with a text that says what it is."""

import io

import numpy as np
import pytest
from PIL import Image

from shard_tools.checks import Flaw, ImageInfo, JpegHeaders, inspect_image


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
    ("data", "extension", "kind", "text"),
    [
        (b"", "jpg", "empty", "empty file"),
        (b"not an image\n", "jpg", "no image", "not an image that can be read"),
        (encode("JPEG")[:-20], "jpg", "truncated", "truncated JPEG"),
        (encode("JPEG")[:50], "jpg", "truncated", "truncated JPEG"),
        (b"\xff\xd8\xff garbage \xff\xd9", "jpg", "damaged", "damaged"),
        (encode("PNG"), "jpg", "other format", "holds a PNG image, but its name says JPEG"),
        (encode("JPEG"), "png", "other format", "holds a JPEG image, but its name says PNG"),
        (encode("PNG")[:200], "png", "damaged", "damaged PNG"),
        (with_height(encode("JPEG"), 50_000), "jpg", "too large", "50000×50000 pixels, more than the limit"),
    ],
)
def test_problems_are_said(data: bytes, extension: str, kind: str, text: str) -> None:
    found = inspect_image(data, extension)
    assert isinstance(found, Flaw)
    assert found.kind == kind
    assert text in found.text


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_seen(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (24, 16)).save(file, image_format, exif=exif)
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif"}[image_format]
    found = inspect_image(file.getvalue(), extension)
    assert isinstance(found, ImageInfo)
    assert found.orientation == orientation
    assert sorted(found[:2]) == [16, 24]


def test_exif_without_an_orientation_is_upright() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    file = io.BytesIO()
    Image.new("RGB", (24, 16)).save(file, "JPEG", exif=exif)
    assert inspect_image(file.getvalue(), "jpg") == ImageInfo(24, 16, "RGB")


@pytest.mark.parametrize(
    ("image_format", "extension"),
    [("BMP", "bmp"), ("TIFF", "tif"), ("GIF", "gif"), ("PPM", "ppm"), ("TGA", "tga"), ("JPEG2000", "jp2")],
)
def test_formats_that_pillow_reads(image_format: str, extension: str) -> None:
    found = inspect_image(encode(image_format), extension)
    assert isinstance(found, ImageInfo)
    assert (found.width, found.height) == (24, 16)


def test_jpegs_in_a_row_are_seen_as_each_alone() -> None:
    """Whatever came before: a header that is kept must not stand for another one, nor hide a damaged end."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = io.BytesIO()
    Image.new("RGB", (24, 16)).save(rotated, "JPEG", exif=exif)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    plain = encode("JPEG")
    jpegs = [
        *(plain, plain, plain[:-1], plain + b"\0", plain[:100] + b"\xff\xd9", plain[:300] + b"\xff\xd9"),
        *(b"", encode("PNG"), encode("JPEG", "L"), encode("JPEG", "CMYK"), encode("JPEG", progressive=True)),
        *(rotated.getvalue(), small.getvalue(), with_height(plain, 50_000), with_height(plain, 17)),
    ]
    order = np.random.default_rng(0).integers(0, len(jpegs), 500).tolist()
    headers = JpegHeaders()
    for number in order:
        expected = inspect_image(jpegs[number], "jpg")
        assert headers.inspect(jpegs[number]) == expected
    assert len({inspect_image(data, "jpg") for data in jpegs}) >= 9
