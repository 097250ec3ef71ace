"""At which size the network sees an image of which size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.seen_size import Sides, parse_size, seen_size
from shard_tools.errors import UserError


@pytest.mark.parametrize(
    ("native", "size", "expected"),
    [
        ((256, 256), 64, (64, 64)),
        ((480, 640), 240, (240, 320)),
        ((640, 480), 240, (320, 240)),
        ((35, 50), 64, (64, 88)),
        ((35, 50), "native", (32, 48)),
        ((3, 1001), "native", (8, 1000)),
        ((35, 50), "320x240", (240, 320)),
        ((35, 50), "320×240", (240, 320)),
    ],
)
def test_it_keeps_the_shape_of_the_image(native: tuple[int, int], size: int | str, expected: tuple[int, int]) -> None:
    assert seen_size(Sides(*native), parse_size(size)) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 64).map(lambda eighths: 8 * eighths))
def test_sides_are_multiples_of_8_and_off_by_4_at_most(height: int, width: int, size: int) -> None:
    for choice, scale in ((size, size / min(height, width)), ("native", 1)):
        seen = seen_size(Sides(height, width), parse_size(choice))
        for side, native in zip(seen, (height, width), strict=True):
            assert side % 8 == 0
            assert side == 8 or abs(side - native * scale) <= 4


@pytest.mark.parametrize("text", ["0", "12", "-8", "8x", "8x12", "x8", "8x8x8", "Native", "1e2", "", "9999999"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--size .*: expected a multiple of 8 for the shorter side, WIDTHxHEIGHT of"):
        parse_size(text)
