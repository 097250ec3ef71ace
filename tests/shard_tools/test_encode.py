"""Images of a source as they go into a shard: encoded anew where asked, and refused where values would be lost."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shard_tools.encode import Encoding
from shard_tools.source_images import BadImageError, Check, ImageRules, SourceImage, SourceImages

RULES = [ImageRules("header"), ImageRules("decode"), ImageRules("header", Encoding(16))]
DECODING = RULES[1:]


def load(folder: Path, image: Image.Image, name: str, rules: ImageRules, component: str, **save: Any) -> SourceImage:
    image.save(folder / name, **save)
    return SourceImages(folder, rules).loader(component, name.rpartition(".")[2])(name)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_rotated_cmyk_jpeg_is_straightened(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (32, 48), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 24, 32, 48))
    rules = ImageRules("header", Encoding(16, 100))
    loaded = load(tmp_path, picture, "a.jpg", rules, "fgbg", exif=turned(6))
    pixels = np.asarray(Image.open(io.BytesIO(loaded.data)), np.int16)
    assert pixels.shape == (16, 16, 3)
    assert pixels[:, :6].max() < 40  # what lay at the bottom comes to the left
    assert pixels[:, 10:].min() > 215
    assert loaded.native == (48, 32)


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 16)), (3, (64, 16)), (5, (16, 64)), (8, (16, 64))])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_the_size_in_the_file_is_told_upright(
    tmp_path: Path, name: str, orientation: int, size: tuple[int, int]
) -> None:
    rules = ImageRules("header", Encoding(16))
    loaded = load(tmp_path, Image.new("L", (64, 16)), name, rules, "mask", exif=turned(orientation))
    assert loaded.native == size
    assert loaded.info[:2] == (16, 16)


@pytest.mark.parametrize(("check", "size"), [("none", (0, 0)), ("header", (64, 16)), ("decode", (64, 16))])
def test_the_size_in_the_file_is_told_where_it_is_looked_at(
    tmp_path: Path, check: Check, size: tuple[int, int]
) -> None:
    assert load(tmp_path, Image.new("L", (64, 16)), "a.jpg", ImageRules(check), "mask").native == size


@pytest.mark.parametrize("component", ["depth", "mask"])
def test_colour_is_refused_when_pixels_are_checked_and_encoded(tmp_path: Path, component: str) -> None:
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    with pytest.raises(BadImageError, match=f"has coloured pixels, but {component} is read as grey") as refused:
        load(tmp_path, red, "a.png", ImageRules("decode", Encoding(16)), component)
    assert refused.value.flaw.kind == "coloured"
    grey = load(tmp_path, red.convert("L").convert("RGB"), "b.png", ImageRules("decode", Encoding(16)), component)
    assert np.unique(np.asarray(Image.open(io.BytesIO(grey.data)))).tolist() == [76]


def floats() -> Image.Image:
    return Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32))


def cut_out(mode: str) -> Image.Image:
    image = Image.new("RGBA", (32, 32))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    return image.convert(mode)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("component", ["depth", "mask"])
@pytest.mark.parametrize(
    ("image", "name", "reason"),
    [
        (floats(), "a.tif", "has pixels of floating point"),
        (cut_out("RGBA"), "a.png", "has an alpha channel"),
        (cut_out("LA"), "a.png", "has an alpha channel"),
    ],
)
def test_what_gray_cannot_hold_is_refused(
    tmp_path: Path, image: Image.Image, name: str, reason: str, component: str, rules: ImageRules
) -> None:
    expected = f"{reason}, but {component} is read as grey: expected one grey channel of 8 or 16 bits"
    with pytest.raises(BadImageError, match=expected) as refused:
        load(tmp_path, image, name, rules, component)
    assert refused.value.flaw.kind == "other format"


@pytest.mark.parametrize("rules", DECODING)
@pytest.mark.parametrize("component", ["depth", "mask"])
@pytest.mark.parametrize("value", [70_000, -1])
def test_numbers_beyond_sixteen_bits_are_refused(tmp_path: Path, value: int, component: str, rules: ImageRules) -> None:
    image = Image.fromarray(np.array([[0] * 16, [value] * 16], np.int32))
    low, high = sorted((0, value))
    with pytest.raises(BadImageError, match=f"has values from {low} to {high}; expected one grey") as refused:
        load(tmp_path, image, "a.tif", rules, component)
    assert refused.value.flaw.kind == "other format"


@pytest.mark.parametrize("rules", DECODING)
def test_a_transparent_colour_of_a_palette_is_refused_in_a_mask(tmp_path: Path, rules: ImageRules) -> None:
    image = Image.new("P", (32, 32))
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(1, (0, 0, 16, 32))
    with pytest.raises(BadImageError, match="is partly transparent, which would be lost; expected one grey") as refused:
        load(tmp_path, image, "a.png", rules, "mask", transparency=0)
    assert refused.value.flaw.kind == "other format"


@pytest.mark.parametrize("rules", RULES)
def test_numbers_of_sixteen_bits_in_thirty_two_are_depth(tmp_path: Path, rules: ImageRules) -> None:
    image = Image.fromarray(np.array([[0] * 16, [65535] * 16] * 8, np.int32))
    loaded = load(tmp_path, image, "a.tif", rules, "depth")
    assert np.unique(np.asarray(Image.open(io.BytesIO(loaded.data)))).tolist() == [0, 65535]


@pytest.mark.parametrize("rules", RULES)
def test_alpha_of_pictures_is_left(tmp_path: Path, rules: ImageRules) -> None:
    assert load(tmp_path, cut_out("RGBA"), "a.png", rules, "fgbg").native == (32, 32)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_value_of_gray_is_left(tmp_path: Path, dtype: type, rules: ImageRules) -> None:
    """It is told by the value itself, which stays."""
    image = Image.fromarray(np.array([[0] * 16, [255] * 16] * 8, dtype))
    loaded = load(tmp_path, image, "a.png", rules, "depth", transparency=0)
    assert np.unique(np.asarray(Image.open(io.BytesIO(loaded.data)))).tolist() == [0, 255]
