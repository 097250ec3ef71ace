"""Where objects go, and that pasted pixels and masks are alpha to the pixel."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shard_tools import recipe
from shard_tools.recipe import PLACEMENTS, Box, paste, paste_depth, pixel_box, scaled_size

sides = st.integers(2, 512).map(lambda n: 8 * n)
lengths = st.integers(1, 3000)


def test_forty_places_are_four_rows_of_five_as_is_and_then_mirrored() -> None:
    assert [p.number for p in PLACEMENTS] == list(range(1, 41))
    assert [(p.mirrored, p.row, p.column) for p in PLACEMENTS] == [
        (mirrored, row, column) for mirrored in (False, True) for row in range(4) for column in range(5)
    ]


def test_rows_shrink_from_060_to_040_as_they_move_up() -> None:
    sizes = [PLACEMENTS[5 * row].size for row in range(4)]
    bases = [PLACEMENTS[5 * row].base for row in range(4)]
    assert sizes == pytest.approx([0.60, 0.53333, 0.46667, 0.40], abs=1e-4)
    assert bases == pytest.approx([0.98, 0.91556, 0.85111, 0.78667], abs=1e-4)


def test_one_object_has_one_height_in_metres_in_every_row() -> None:
    """A pinhole camera: height in metres = part of the image × distance / focal length."""
    heights = [p.size * recipe.floor_distance(p.base) / recipe.FOCAL_LENGTH for p in PLACEMENTS]
    assert heights == pytest.approx([1.2 * 0.60 / 0.58] * 40)


def test_mirror_images_stand_where_the_originals_do() -> None:
    for original, mirrored in zip(PLACEMENTS[:20], PLACEMENTS[20:], strict=True):
        assert (original.size, original.base, original.centre) == (mirrored.size, mirrored.base, mirrored.centre)


@given(width=lengths, height=lengths, side=sides)
def test_every_object_lies_inside_the_image_at_all_places(width: int, height: int, side: int) -> None:
    for placement in PLACEMENTS:
        scaled = scaled_size(width, height, placement.size, side)
        box = pixel_box(placement, *scaled, side)
        assert (box.right - box.left, box.bottom - box.top) == scaled
        assert max(scaled) == round(placement.size * side)
        assert box.left >= 0
        assert box.top >= 0
        assert box.right <= side
        assert box.bottom == round(placement.base * side) <= side


@given(width=lengths, height=lengths, side=sides)
def test_columns_go_from_left_to_right_without_repeating(width: int, height: int, side: int) -> None:
    for row in range(4):
        lefts = [
            pixel_box(p, *scaled_size(width, height, p.size, side), side).left for p in PLACEMENTS if p.row == row
        ][:5]
        assert all(a < b for a, b in pairwise(lefts))


def test_pasted_pixels_are_the_alpha_composite_and_the_mask_is_alpha() -> None:
    random = np.random.default_rng(3)
    background = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sprite = random.integers(0, 256, (21, 13, 4), dtype=np.uint8)
    sprite[:4, :, 3] = 0
    sprite[4:8, :, 3] = 255
    kept = background.copy()
    overlay, mask = paste(background, sprite, Box(5, 30, 18, 51))

    assert np.array_equal(background, kept)
    expected_mask = np.zeros((64, 64), np.uint8)
    expected_mask[30:51, 5:18] = sprite[:, :, 3]
    assert np.array_equal(mask, expected_mask)
    assert np.array_equal(overlay[mask == 0], background[mask == 0])
    assert np.array_equal(overlay[34:38, 5:18], sprite[4:8, :, :3])
    by_pillow = Image.fromarray(background)
    by_pillow.paste(Image.fromarray(sprite[:, :, :3]), (5, 30), Image.fromarray(sprite[:, :, 3]))
    assert np.array_equal(overlay, np.asarray(by_pillow))


def test_object_pixels_have_the_depth_of_the_floor_they_stand_on() -> None:
    depth = np.full((4, 4), 250, np.uint8)
    mask = np.array([[0, 127, 128, 255]] * 4, np.uint8)
    placed = paste_depth(depth, mask, base=0.98)
    assert placed.tolist() == [[250, 250, round(255 * 0.12 / 0.58), round(255 * 0.12 / 0.58)]] * 4


def test_ground_plane_is_far_above_the_horizon_and_falls_as_one_over_the_distance_below() -> None:
    plane = recipe.ground_plane(200)
    rows = (np.arange(200) + 0.5) / 200
    assert plane.shape == (200, 200)
    assert (plane[rows <= 0.40] == 1).all()
    floor = plane[rows > 0.53]
    assert floor == pytest.approx(np.repeat((0.12 / (rows[rows > 0.53] - 0.40))[:, None], 200, axis=1))
    assert (np.diff(plane[:, 0]) <= 0).all()
    assert plane.max() == 1
