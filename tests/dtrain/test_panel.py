"""The panel: what a reader sees in which cell, in which colours."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dtrain.panel import DEPTH_ERROR_SCALE, PanelSamples, draw_panel, panel_cells
from dtrain.panel_colours import depth_colours, error_colours
from dtrain.panel_layout import MIN_CELL


def make_samples(count: int = 2, size: int = 32) -> PanelSamples:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, count, size, size, 3), dtype=np.uint8)
    planes = rng.random((4, count, size, size), dtype=np.float32)
    return PanelSamples(
        keys=[f"bg{index}" for index in range(count)],
        bg=images[0],
        fgbg=images[1],
        depth=planes[0],
        depth_predicted=planes[1],
        mask=planes[2],
        mask_predicted=planes[3],
    )


def contains(sheet: Image.Image, cell: np.ndarray) -> list[tuple[int, int]]:
    """Return the (x, y) of every place where the sheet shows exactly this cell, (H, W, 3) uint8."""
    pixels = np.asarray(sheet)
    height, width = cell.shape[:2]
    ys, xs = np.nonzero((pixels == cell[0, 0]).all(-1))
    return [
        (int(x), int(y))
        for x, y in zip(xs, ys, strict=True)
        if np.array_equal(pixels[y : y + height, x : x + width], cell)
    ]


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.mark.parametrize(("size", "factor"), [(32, 4), (48, 3), (64, 2), (136, 1)])
def test_every_cell_shows_its_image_enlarged_by_a_whole_factor(size: int, factor: int) -> None:
    samples = make_samples(size=size)
    sheet = draw_panel(samples)
    assert size * factor >= MIN_CELL
    assert samples.depth is not None
    assert samples.mask is not None

    def grey(plane: np.ndarray) -> np.ndarray:
        return np.stack([np.rint(255 * plane).astype(np.uint8)] * 3, axis=-1)

    columns = [
        samples.bg,
        samples.fgbg,
        depth_colours(samples.depth),
        depth_colours(samples.depth_predicted),
        error_colours(np.abs(samples.depth_predicted - samples.depth) / DEPTH_ERROR_SCALE),
        grey(samples.mask),
        grey(samples.mask_predicted),
        error_colours(np.abs(samples.mask_predicted - samples.mask)),
    ]
    places = [[contains(sheet, enlarge(image, factor)) for image in column] for column in columns]
    assert all(len(found) == 1 for column in places for found in column)
    lefts = [[found[0][0] for found in column] for column in places]
    tops = [[found[0][1] for found in column] for column in places]
    assert all(left == column[0] for column in lefts for left in column)
    assert [column[0] for column in lefts] == sorted({column[0] for column in lefts})
    assert all(column == tops[0] for column in tops)
    assert tops[0][1] - tops[0][0] > size * factor, "no room for the key between the rows"


def test_without_truth_its_columns_are_left_out() -> None:
    samples = make_samples()
    whole = draw_panel(samples).width
    assert samples.depth is not None
    assert samples.mask is not None
    without_depth = draw_panel(replace(samples, depth=None))
    assert without_depth.width < whole
    without_truth = draw_panel(replace(samples, depth=None, mask=None))
    assert without_truth.width < without_depth.width
    mask_error = error_colours(np.abs(samples.mask_predicted[0] - samples.mask[0]))
    assert contains(without_depth, enlarge(mask_error, 4))
    assert not contains(without_truth, enlarge(mask_error, 4))
    assert not contains(without_depth, enlarge(depth_colours(samples.depth[0]), 4))
    assert contains(without_depth, enlarge(depth_colours(samples.depth_predicted[0]), 4))


def test_the_key_is_drawn_and_a_long_one_is_cut_not_spilled() -> None:
    samples = make_samples(count=1)
    sheets = [np.asarray(draw_panel(replace(samples, keys=[key]))) for key in ("a", "b", "W" * 500)]
    assert not np.array_equal(sheets[0], sheets[1])
    assert sheets[2].shape == sheets[0].shape
    assert (sheets[2][:, -10:] == 255).all(), "the key runs into the margin"


def test_depth_colours_grow_lighter_and_are_clipped_to_the_scale() -> None:
    colours = depth_colours(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).astype(float)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 20).all()
    assert np.array_equal(depth_colours(np.array([-0.2, 1.3])), depth_colours(np.array([0.0, 1.0])))


def test_error_colours_grow_darker_and_stay_so_above_the_scale() -> None:
    colours = error_colours(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).astype(float)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < -20).all()
    assert np.array_equal(error_colours(np.array([1.0])), error_colours(np.array([7.0])))


def test_the_same_error_has_the_same_colour_on_every_sheet() -> None:
    """So the panels of a run can be compared, however large the other errors on a sheet are."""
    samples = make_samples(count=1)
    assert samples.depth is not None
    small = np.full_like(samples.depth, 0.5)
    small[0, :16] = 0.625
    large = small.copy()
    large[0, 16:] = 1.0
    truth = np.full_like(samples.depth, 0.5)
    for predicted in (small, large):
        cells = panel_cells(draw_panel(replace(samples, depth=truth, depth_predicted=predicted)))
        assert cells is not None
        shown = np.asarray(cells[0]["depth error"])[:64]
        assert (shown == error_colours(np.array(0.125 / DEPTH_ERROR_SCALE))).all()


@pytest.mark.parametrize("size", [32, 64, 96, 128, 160, 256])
@pytest.mark.parametrize("count", [1, 3])
def test_a_sheet_can_be_cut_up_again_whatever_the_size_of_its_images(size: int, count: int) -> None:
    samples = make_samples(count=count, size=size)
    cells = panel_cells(draw_panel(samples))
    assert cells is not None
    assert len(cells) == count
    factor = max(1, -(-MIN_CELL // size))
    for row, found in enumerate(cells):
        assert np.array_equal(np.asarray(found["fgbg"]), enlarge(samples.fgbg[row], factor))
        assert np.array_equal(
            np.asarray(found["depth predicted"]), enlarge(depth_colours(samples.depth_predicted[row]), factor)
        )


def test_what_is_no_whole_sheet_is_not_cut_up() -> None:
    samples = make_samples()
    sheet = draw_panel(samples)
    assert panel_cells(Image.new("RGB", sheet.size, "white")) is None
    assert panel_cells(sheet.crop((0, 0, sheet.width, sheet.height - 1))) is None
    assert panel_cells(draw_panel(replace(samples, depth=None))) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_stand_out(value: float) -> None:
    samples = make_samples(count=1)
    samples.depth_predicted[0] = value
    samples.mask_predicted[0] = value
    magenta = np.full((MIN_CELL, MIN_CELL, 3), (255, 0, 255), dtype=np.uint8)
    assert len(contains(draw_panel(samples), magenta)) == 4, "predictions and errors"


def test_the_same_samples_give_the_same_pixels() -> None:
    assert draw_panel(make_samples()).tobytes() == draw_panel(make_samples()).tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keys", ["only one"]),
        ("bg", np.zeros((0, 32, 32, 3), np.uint8)),
        ("fgbg", np.zeros((2, 32, 32, 3), np.float32)),
        ("depth", np.zeros((2, 1, 32, 32), np.float32)),
        ("mask_predicted", np.zeros((2, 32, 31), np.float32)),
    ],
)
def test_shapes_and_dtypes_that_disagree_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(make_samples(), **{field: value})  # type: ignore[arg-type]
