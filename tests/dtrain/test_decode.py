"""Decoding: pixels that agree with Pillow's, at full size and scaled; what can't be read; the background cache."""

import io
import random
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from dtrain.data import decode
from dtrain.data.decode import BackgroundCache, decode_batch, decode_exactly, decode_into, decoded_size
from shard_tools.sample import write_sample

from .conftest import encoded, smooth_pixels

Pixels = NDArray[np.uint8]


def decoded(data: bytes, height: int, width: int, channels: int = 3) -> Pixels:
    slot = np.full((height, width, channels), 77, dtype=np.uint8)
    decode_into(data, slot)
    return slot


def with_pillow(data: bytes, mode: str, size: tuple[int, int] | None = None) -> NDArray[np.int16]:
    """Pixels of shape (H, W, C) as Pillow decodes them, brought to (width, height) by its antialiased resize."""
    image = Image.open(io.BytesIO(data)).convert(mode)
    if size is not None:
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image, dtype=np.int16).reshape(image.height, image.width, -1)


@pytest.mark.parametrize(("width", "height"), [(48, 48), (64, 40), (33, 57), (8, 8)])
@pytest.mark.parametrize("quality", [60, 95])
def test_full_size_pixels_are_pillows_within_one(width: int, height: int, quality: int) -> None:
    colour = encoded(smooth_pixels(1, width, height), quality=quality)
    difference = decoded(colour, height, width) - with_pillow(colour, "RGB")
    assert np.abs(difference).max() <= 1
    gray = encoded(smooth_pixels(2, width, height, gray=True), quality=quality)
    assert np.abs(decoded(gray, height, width, 1) - with_pillow(gray, "L")).max() <= 1


@pytest.mark.parametrize("side", [256, 128, 64, 40, 32, 300])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_exactly_means_pillows_pixels(side: int, mode: str) -> None:
    for kind in ("JPEG", "PNG"):
        data = encoded(smooth_pixels(6, 256, 256, gray=mode == "L"), kind)
        slot = np.empty((side, side, len(mode)), dtype=np.uint8)
        decode_exactly(data, slot)
        image = Image.open(io.BytesIO(data)).convert(mode)
        expected = image if side == 256 else image.resize((side, side), Image.Resampling.BILINEAR)
        assert np.array_equal(slot, np.asarray(expected).reshape(slot.shape))


@pytest.mark.parametrize("eighths", [4, 2, 1])
def test_rendered_rooms_are_near_pillows_resize_at_every_scale(eighths: int, tmp_path: Path) -> None:
    """Pictures with edges and texture: mean error at most 1.5 levels from a box filter, 3 from the wider bilinear."""
    write_sample(tmp_path, backgrounds=1, foregrounds=1, size=256, seed=1, workers=1)
    side = 256 * eighths // 8
    for path in sorted(tmp_path.rglob("*.jpg")):
        data = path.read_bytes()
        mode = "RGB" if path.parent.name in ("bg", "overlay") else "L"
        found = decoded(data, side, side, len(mode))
        image = Image.open(io.BytesIO(data)).convert(mode)
        for method, tolerance in ((Image.Resampling.BOX, 1.5), (Image.Resampling.BILINEAR, 3.0)):
            expected = np.asarray(image.resize((side, side), method), dtype=np.int16).reshape(found.shape)
            assert np.abs(found - expected).mean() <= tolerance, (path, method)


@pytest.mark.parametrize("eighths", [4, 2, 1])
@pytest.mark.parametrize(
    ("mode", "subsampling", "tolerance"),
    [("L", 0, 1.0), ("RGB", 0, 1.0), ("RGB", 2, 3.0)],  # with 4:2:0, chroma is averaged over other pixels
)
def test_scaled_pixels_are_those_of_an_antialiased_resize(
    eighths: int, mode: str, subsampling: int, tolerance: float
) -> None:
    """Mean error at most 1 of 255 levels, 3 with subsampled chroma; picking pixels instead of averaging is 7 off."""
    pixels = smooth_pixels(3, 256, 192, gray=mode == "L")
    data = encoded(pixels, quality=95, subsampling=subsampling)
    height, width = 192 * eighths // 8, 256 * eighths // 8
    found = decoded(data, height, width, len(mode))

    expected = with_pillow(data, mode, (width, height))
    assert decoded_size((192, 256), height) == (height, width)
    assert np.abs(found - expected).mean() <= tolerance
    step = 8 // eighths
    picked = with_pillow(data, mode)[step // 2 :: step, step // 2 :: step]
    assert np.abs(picked - expected).mean() > 7

    drafted = Image.open(io.BytesIO(data))  # Pillow's own way of scaling in the decoder
    drafted.draft(mode, (width, height))
    assert drafted.size == (width, height)
    assert np.abs(found - np.asarray(drafted, dtype=np.int16).reshape(found.shape)).max() <= 1


def test_decoded_size_is_what_the_decoder_returns() -> None:
    generator = random.Random(0)
    for _ in range(300):
        size = generator.choice([8, 16, 24, 32, 40, 48, 64, 128])
        native = generator.randint(size, 3 * size), generator.randint(size, 9 * size)
        data = simplejpeg.encode_jpeg(np.zeros((*native, 1), np.uint8), colorspace="GRAY")
        real = simplejpeg.decode_jpeg(data, "GRAY", min_height=size, min_width=size).shape[:2]
        assert decoded_size(native, size) == real, (native, size)


@pytest.mark.parametrize(
    ("native", "size", "expected"),
    [
        ((256, 256), 256, (256, 256)),
        ((256, 256), 128, (128, 128)),
        ((256, 256), 64, (64, 64)),
        ((256, 256), 32, (32, 32)),
        ((256, 256), 8, (32, 32)),
        ((256, 256), 136, (160, 160)),
        ((100, 75), 32, (50, 38)),
        ((96, 48), 24, (48, 24)),
        ((48, 48), 64, (48, 48)),
        ((3, 50), 24, (3, 50)),
    ],
)
def test_decoded_size_covers_the_size_with_the_least_work(
    native: tuple[int, int], size: int, expected: tuple[int, int]
) -> None:
    assert decoded_size(native, size) == expected


@pytest.mark.parametrize(("width", "height"), [(96, 48), (48, 96), (100, 75)])
def test_images_that_are_no_squares_are_scaled_by_the_decoder_too(width: int, height: int) -> None:
    data = encoded(smooth_pixels(4, width, height), quality=90)
    scaled = decoded_size((height, width), 24)
    expected = simplejpeg.decode_jpeg(data, min_height=24, min_width=24)
    assert expected.shape[:2] == scaled != (height, width)
    assert (decoded(data, *scaled) == expected).all()


@pytest.mark.parametrize(("width", "height"), [(50, 3), (3, 50), (1, 1), (20, 30)])
def test_images_smaller_than_the_size_keep_their_pixels(width: int, height: int) -> None:
    data = encoded(smooth_pixels(5, width, height), quality=90)
    assert decoded_size((height, width), 32) == (height, width)
    assert np.abs(decoded(data, height, width) - with_pillow(data, "RGB")).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(96, 48), (30, 20), (200, 100)])
def test_any_image_fills_a_slot_of_another_shape(width: int, height: int) -> None:
    data = encoded(smooth_pixels(6, width, height), quality=95)
    expected = np.asarray(
        Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), dtype=np.int16
    )
    assert np.abs(decoded(data, 32, 32) - expected).mean() <= 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_read_by_pillow(kind: str) -> None:
    options = {"lossless": 1} if kind == "WEBP" else {}
    colour, gray = smooth_pixels(7, 40, 24), smooth_pixels(8, 40, 24, gray=True)
    assert (decoded(encoded(colour, kind, **options), 24, 40) == colour).all()
    assert (decoded(encoded(gray, "PNG"), 24, 40, 1)[..., 0] == gray).all()


def test_gray_in_a_colour_slot_and_colour_in_a_gray_one() -> None:
    gray, colour = smooth_pixels(9, 16, 16, gray=True), smooth_pixels(10, 16, 16)
    for kind in ("JPEG", "PNG"):
        data = encoded(gray, kind)
        assert np.abs(decoded(data, 16, 16) - with_pillow(data, "RGB")).max() <= 1
        data = encoded(colour, kind)
        assert np.abs(decoded(data, 16, 16, 1) - with_pillow(data, "L")).max() <= 2


def test_cmyk_jpeg() -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth_pixels(11, 32, 24)).convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(decoded(buffer.getvalue(), 24, 32) - with_pillow(buffer.getvalue(), "RGB")).max() <= 1
    assert decoded(buffer.getvalue(), 16, 16).std() > 10


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.arange(0, 2**16, 64, dtype=np.uint16).reshape(32, 32)
    data = encoded(values, "PNG")
    assert (decoded(data, 32, 32, 1)[..., 0] == values >> 8).all()
    assert (decoded(data, 32, 32) == (values >> 8)[..., None]).all()
    half = decoded(data, 16, 16, 1)
    assert np.abs(half[..., 0] - (values >> 8)[::2, ::2].astype(np.int16)).max() <= 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_truncated_data_is_refused(kind: str, channels: int) -> None:
    data = encoded(smooth_pixels(12, 64, 64), kind)
    for length in (0, 1, 2, 10, len(data) // 3, len(data) * 9 // 10):
        with pytest.raises(ValueError, match=r"\w"):
            decoded(data[:length], 64, 64, channels)


def test_whatever_is_wrong_with_data_is_a_value_error() -> None:
    generator = random.Random(1)
    kinds = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000"]
    whole = [encoded(smooth_pixels(13, 24, 24), kind) for kind in kinds]
    refused = 0
    for _ in range(1500):
        data = bytearray(generator.choice(whole))
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(min(len(data), 60))] = generator.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                decoded(bytes(data), 24, 24)
            except ValueError as error:
                refused += 1
                assert str(error)
    assert refused > 100


def test_an_image_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 64 - 1)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(ValueError, match="64×64 pixels are more than 4095"):
            decoded(encoded(smooth_pixels(14, 64, 64), kind), 60, 60)


def backgrounds(count: int) -> list[bytes]:
    return [encoded(smooth_pixels(20 + number, 32, 32), quality=90) for number in range(count)]


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What libjpeg-turbo was given, in order."""
    given: list[bytes] = []
    real = simplejpeg.decode_jpeg

    def spy(data: bytes, *arguments: Any, **options: Any) -> Any:
        given.append(data)
        return real(data, *arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    return given


def cached(cache: BackgroundCache, data: bytes) -> Pixels:
    slot = np.zeros((32, 32, 3), dtype=np.uint8)
    cache.decode_into(data, slot)
    return slot


def test_equal_backgrounds_are_decoded_once_and_are_equal(decodings: list[bytes]) -> None:
    first, second = backgrounds(2)
    expected = [decoded(data, 32, 32) for data in (first, second)]
    decodings.clear()
    cache = BackgroundCache(2**20)
    for _ in range(3):
        assert (cached(cache, bytes(bytearray(first))) == expected[0]).all()
        assert (cached(cache, second) == expected[1]).all()
    assert decodings == [first, second]


def test_what_a_batch_does_with_its_slot_does_not_reach_the_cache() -> None:
    (data,) = backgrounds(1)
    cache = BackgroundCache(2**20)
    cached(cache, data)[...] = 0
    cached(cache, data)[...] = 0
    assert (cached(cache, data) == decoded(data, 32, 32)).all()


def test_the_cache_is_bounded_and_drops_the_least_recently_used(decodings: list[bytes]) -> None:
    a, b, c = backgrounds(3)
    cost = 32 * 32 * 3 + max(map(len, (a, b, c)))
    cache = BackgroundCache(2 * cost)
    for data in (a, b, a, c, a, b):  # c takes the place of b
        cached(cache, data)
    assert decodings == [a, b, c, b]


@pytest.mark.parametrize("size", [0, 100])
def test_a_cache_too_small_for_one_image_keeps_none(decodings: list[bytes], size: int) -> None:
    (data,) = backgrounds(1)
    cache = BackgroundCache(size)
    assert (cached(cache, data) == cached(cache, data)).all()
    assert decodings == [data, data]


def test_a_background_that_cannot_be_decoded_is_an_error_every_time() -> None:
    (data,) = backgrounds(1)
    cache = BackgroundCache(2**20)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\w"):
            cached(cache, data[:200])


def test_threads_share_the_cache() -> None:
    images = backgrounds(6)
    expected = [decoded(data, 32, 32) for data in images]
    cache = BackgroundCache(3 * (32 * 32 * 3 + max(map(len, images))))
    wrong: list[int] = []

    def work(seed: int) -> None:
        for number in random.Random(seed).choices(range(6), k=200):
            wrong.extend([number] * int((cached(cache, images[number]) != expected[number]).any()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("side", [40, 64, 90])
def test_images_smaller_or_larger_than_the_slots_are_not_decoded_again_and_again(
    side: int, decodings: list[bytes]
) -> None:
    images = [encoded(smooth_pixels(number, side, side), quality=90) for number in range(12)]
    images[5] = b"no image"
    slots = np.empty((12, 64, 64, 3), dtype=np.uint8)
    assert list(decode_batch(decode_into, images, slots)) == [5]
    assert max(decodings.count(data) for data in images) <= 3
    for row, data in enumerate(images):
        if row != 5:
            assert np.array_equal(slots[row], decoded(data, 64, 64))
