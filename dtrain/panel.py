"""The panel: a contact sheet of inputs, truth and predictions. Draws a picture; never reads or writes files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MIN_CELL = 128
"""Smallest side of a drawn cell, in pixels; smaller images are enlarged by a whole factor."""

_MARGIN = 20
_GAP = 8
_HEADING_HEIGHT = 26
_KEY_HEIGHT = 28
_SCALE_HEIGHT = 12
_SCALE_WIDTH = 128

_PAPER = (255, 255, 255)
_INK = (34, 37, 42)
_FAINT_INK = (96, 103, 112)
_HAIRLINE = (214, 217, 222)
_NOT_FINITE = (255, 0, 255)

_COLOUR_ANCHORS: NDArray[np.float64] = np.array(
    [
        (68, 1, 84),
        (71, 45, 123),
        (59, 82, 139),
        (44, 114, 142),
        (33, 145, 140),
        (40, 174, 128),
        (94, 201, 98),
        (173, 220, 48),
        (253, 231, 37),
    ],
    dtype=np.float64,
)

RGB = NDArray[np.uint8]
Plane = NDArray[np.float32]


@dataclass(frozen=True)
class PanelSamples:
    """N samples to be drawn, all of one size H × W.

    `keys`: N names. `bg`, `fgbg`: uint8, (N, H, W, 3), RGB. The others: float32, (N, H, W), 0 to 1.
    Predictions may leave that range slightly: they are clipped for display only. Without truth (`depth`
    or `mask` is None) its column is left out. Raises ValueError where shapes or dtypes disagree.
    """

    keys: Sequence[str]
    bg: RGB
    fgbg: RGB
    depth_predicted: Plane
    mask_predicted: Plane
    depth: Plane | None = None
    mask: Plane | None = None

    def __post_init__(self) -> None:
        if self.bg.ndim != 4 or 0 in self.bg.shape:
            raise ValueError(f"bg: expected shape (N, H, W, 3) with no empty axis, got {self.bg.shape}")
        planes = self.bg.shape[:3]
        for name in ("bg", "fgbg"):
            self._expect(name, (*planes, 3), np.uint8)
        for name in ("depth_predicted", "mask_predicted", "depth", "mask"):
            self._expect(name, planes, np.float32)
        if len(self.keys) != planes[0]:
            raise ValueError(f"keys: expected {planes[0]}, one a sample, got {len(self.keys)}")

    def _expect(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        array = getattr(self, name)
        if array is not None and (array.shape != shape or array.dtype != dtype):
            raise ValueError(
                f"{name}: expected {dtype.__name__} of shape {shape}, got {array.dtype} of shape {array.shape}"
            )


def draw_panel(samples: PanelSamples) -> Image.Image:
    """Return the contact sheet, RGB: one row a sample, its key below; columns as far as they are known.

    bg | fgbg | depth | depth predicted | mask | mask predicted. Depth goes through one fixed colour map over
    [0, 1], the same for truth and prediction and for every sheet; values that are not finite are magenta.
    Images smaller than `MIN_CELL` are enlarged by a whole factor, without interpolation.
    """
    columns = _columns(samples)
    rows, height, width = samples.bg.shape[:3]
    factor = max(1, -(-MIN_CELL // min(height, width)))
    cell_width, cell_height = width * factor, height * factor
    row_height = cell_height + _KEY_HEIGHT

    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + len(columns) * (cell_width + _GAP) - _GAP,
            2 * _MARGIN + _HEADING_HEIGHT + rows * row_height + _SCALE_HEIGHT,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    heading_font, key_font = ImageFont.load_default(15), ImageFont.load_default(12)

    for column, (heading, images) in enumerate(columns):
        left = _MARGIN + column * (cell_width + _GAP)
        draw.text((left, _MARGIN), _fit(heading, heading_font, cell_width), _INK, heading_font)
        for row, image in enumerate(images):
            top = _MARGIN + _HEADING_HEIGHT + row * row_height
            cell = Image.fromarray(image).resize((cell_width, cell_height), Image.Resampling.NEAREST)
            sheet.paste(cell, (left, top))
            draw.rectangle((left - 1, top - 1, left + cell_width, top + cell_height), outline=_HAIRLINE)
    for row, key in enumerate(samples.keys):
        top = _MARGIN + _HEADING_HEIGHT + row * row_height + cell_height + 5
        draw.text((_MARGIN, top), _fit(key, key_font, sheet.width - 2 * _MARGIN), _FAINT_INK, key_font)
    _draw_depth_scale(sheet, draw, key_font)
    return sheet


def depth_colours(depth: NDArray[np.floating]) -> RGB:
    """Return the RGB colours, uint8 (…, 3), of depth values (…) clipped to [0, 1]; not finite is magenta."""
    position = np.clip(np.nan_to_num(depth), 0.0, 1.0)
    anchors = np.linspace(0.0, 1.0, len(_COLOUR_ANCHORS))
    channels = [np.interp(position, anchors, channel) for channel in _COLOUR_ANCHORS.T]
    return _mark_not_finite(np.stack(channels, axis=-1), depth)


def _grey(values: Plane) -> RGB:
    shade = 255.0 * np.clip(np.nan_to_num(values), 0.0, 1.0)
    return _mark_not_finite(np.repeat(shade[..., np.newaxis], 3, axis=-1), values)


def _mark_not_finite(colours: NDArray[np.floating], values: NDArray[np.floating]) -> RGB:
    return np.where(np.isfinite(values)[..., np.newaxis], np.rint(colours), _NOT_FINITE).astype(np.uint8)


def _columns(samples: PanelSamples) -> list[tuple[str, RGB]]:
    columns = [("bg", samples.bg), ("fgbg", samples.fgbg)]
    if samples.depth is not None:
        columns.append(("depth", depth_colours(samples.depth)))
    columns.append(("depth predicted", depth_colours(samples.depth_predicted)))
    if samples.mask is not None:
        columns.append(("mask", _grey(samples.mask)))
    columns.append(("mask predicted", _grey(samples.mask_predicted)))
    return columns


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut the text at its end, with an ellipsis, until it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _draw_depth_scale(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """Draw the key of the depth colours, "depth 0 ▬ 1", into the right of the last line."""
    middle = sheet.height - _MARGIN - _SCALE_HEIGHT // 2
    right = sheet.width - _MARGIN
    draw.text((right, middle), "1", _FAINT_INK, font, anchor="rm")
    right -= round(font.getlength("1")) + 6
    ramp = np.tile(depth_colours(np.linspace(0.0, 1.0, _SCALE_WIDTH)), (_SCALE_HEIGHT, 1, 1))
    sheet.paste(Image.fromarray(ramp), (right - _SCALE_WIDTH, middle - _SCALE_HEIGHT // 2))
    draw.text((right - _SCALE_WIDTH - 6, middle), "depth 0", _FAINT_INK, font, anchor="rm")
