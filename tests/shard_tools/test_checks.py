"""Whole images pass with their size and mode, anything else with a text that says what it is."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shard_tools.checks import Flaw, ImageInfo, JpegHeaders, inspect_image
from shard_tools.pixels import decode_rgb, open_image


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
    assert found[:2] == (24, 16)


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


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def saved(image_format: str, size: tuple[int, int] = (24, 16), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("fill", [1, 2, 5])
def test_fill_bytes_before_a_marker_hide_no_orientation(fill: int) -> None:
    jpeg = saved("JPEG", exif=exif_of(6))
    at = jpeg.index(b"\xff\xe1")
    filled = jpeg[:at] + b"\xff" * fill + jpeg[at:]
    assert inspect_image(filled, "jpg") == ImageInfo(24, 16, "RGB", 6)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def test_a_large_png_with_exif_is_refused_before_it_is_decoded() -> None:
    """Its pixels are damaged: who looks at them cannot say "too large"."""
    header = png_chunk(b"IHDR", (12_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]))
    exif = png_chunk(b"eXIf", exif_of(6).tobytes().removeprefix(b"Exif\0\0"))
    png = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"no pixels") + exif + png_chunk(b"IEND", b"")
    found = inspect_image(png, "png")
    assert isinstance(found, Flaw)
    assert (found.kind, found.text[:11]) == ("too large", "12000×12000")


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW_PROFILE = f"\nexif\n{len(exif_of(6).tobytes()):8d}\n{exif_of(6).tobytes().hex()}\n"


@pytest.mark.parametrize("notes", [{"XML:com.adobe.xmp": XMP}, {"Raw profile type exif": RAW_PROFILE}, {}])
@pytest.mark.parametrize("exif", [None, 6])
def test_header_and_pixels_agree_on_what_is_upright(notes: dict[str, str], exif: int | None) -> None:
    info = PngInfo()
    for name, text in notes.items():
        info.add_itxt(name, text) if name.startswith("XML") else info.add_text(name, text)
    png = saved("PNG", pnginfo=info, exif=exif_of(exif) if exif else b"")
    found = inspect_image(png, "png")
    assert found == ImageInfo(24, 16, "RGB", exif or 1)
    assert open_image(png).size == ((16, 24) if exif else (24, 16))
    assert decode_rgb(png).shape == ((24, 16, 3) if exif else (16, 24, 3))


@pytest.mark.parametrize(
    ("image_format", "extension"),
    [
        *(("BMP", "bmp"), ("TIFF", "tif"), ("GIF", "gif"), ("PPM", "ppm"), ("TGA", "tga"), ("JPEG2000", "jp2")),
        *(("PNG", "png"), ("WEBP", "webp"), ("AVIF", "avif")),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_file_is_seen_in_every_format(image_format: str, extension: str, share: float) -> None:
    data = encode(image_format)
    found = inspect_image(data[: int(len(data) * share)], extension)
    assert isinstance(found, Flaw)
    assert found.kind in ("damaged", "no image")


def test_bytes_behind_the_end_of_a_jpeg_are_counted() -> None:
    found = inspect_image(encode("JPEG") + b"\r\n" * 600, "jpg")
    assert found == Flaw("damaged", "JPEG with 1,200 bytes behind its end; save it again")


def test_the_end_of_a_thumbnail_is_not_that_of_its_image() -> None:
    jpeg = saved("JPEG", exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0" + saved("JPEG", (8, 8)))
    found = inspect_image(jpeg[:-20], "jpg")
    assert isinstance(found, Flaw)
    assert found.kind == "truncated"
