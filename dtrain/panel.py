"""The panel: a contact sheet of inputs, truth, predictions and errors. Draws a picture; never touches files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dtrain.panel_colours import RGB, depth_colours, error_colours, greys
from dtrain.panel_layout import MIN_CELL, SheetLayout

DEPTH_ERROR_SCALE = 0.25
"""The absolute error of depth that has the darkest colour, as all above it have; that of a mask is 1."""

_PAPER = (255, 255, 255)
_INK = (34, 37, 42)
_FAINT_INK = (96, 103, 112)
_HAIRLINE = (214, 217, 222)

_COLUMNS = ("bg", "fgbg", "depth", "depth predicted", "depth error", "mask", "mask predicted", "mask error")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Plane = NDArray[np.float32]


@dataclass(frozen=True)
class PanelSamples:
    """N samples to be drawn, all of one size H × W.

    `keys`: N names. `bg`, `fgbg`: uint8, (N, H, W, 3), RGB. The others: float32, (N, H, W), 0 to 1.
    Predictions may leave that range slightly: they are clipped for display only. Without truth (`depth`
    or `mask` is None) its column and that of the error are left out. Raises ValueError where shapes or dtypes
    disagree.
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

    bg | fgbg | depth | depth predicted | depth error | mask | mask predicted | mask error. Depth goes through one
    fixed colour map over [0, 1], the absolute errors through another, over [0, `DEPTH_ERROR_SCALE`] and [0, 1]: the
    same for every sheet, and said in its last line. Values that are not finite are magenta. Images smaller than
    `MIN_CELL` are enlarged by a whole factor, without interpolation.
    """
    columns = _columns(samples)
    rows, height, width = samples.bg.shape[:3]
    factor = max(1, -(-MIN_CELL // min(height, width)))
    layout = SheetLayout(_groups(list(columns)), rows, width * factor, height * factor)
    sheet = Image.new("RGB", layout.size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    heading_font, key_font = (ImageFont.load_default(layout.scaled(pixels)) for pixels in (15, 12))
    for left, (heading, images) in zip(layout.lefts, columns.items(), strict=True):
        draw.text((left, layout.margin), _fit(heading, heading_font, layout.cell_width), _INK, heading_font)
        for row, image in enumerate(images):
            cell = Image.fromarray(image).resize((layout.cell_width, layout.cell_height), Image.Resampling.NEAREST)
            sheet.paste(cell, (left, layout.top(row)))
            draw.rectangle(_frame(layout, left, row), outline=_HAIRLINE)
    for row, key in enumerate(samples.keys):
        top = layout.top(row) + layout.cell_height + layout.scaled(5)
        draw.text((layout.margin, top), _fit(key, key_font, sheet.width - 2 * layout.margin), _FAINT_INK, key_font)
    _draw_scales(sheet, draw, key_font, layout, list(columns))
    return sheet


def panel_cells(sheet: Image.Image) -> list[dict[str, Image.Image]] | None:
    """Return for each sample of a sheet its cells by their heading; None for one without truth, or any other picture.

    Only sheets of square images are recognised, by their size and the lines around their cells.
    """
    layout = SheetLayout.of_sheet(sheet.size, _groups(_COLUMNS))
    if layout is None:
        return None
    rows = []
    for row in range(layout.rows):
        cells = {}
        for heading, left in zip(_COLUMNS, layout.lefts, strict=True):
            x0, y0, x1, y1 = _frame(layout, left, row)
            if any(sheet.getpixel(corner) != _HAIRLINE for corner in ((x0, y0), (x1, y0), (x0, y1), (x1, y1))):
                return None
            cells[heading] = sheet.crop((x0 + 1, y0 + 1, x1, y1))
        rows.append(cells)
    return rows


def _columns(samples: PanelSamples) -> dict[str, RGB]:
    depth, mask = samples.depth, samples.mask
    known = {
        "bg": samples.bg,
        "fgbg": samples.fgbg,
        "depth": None if depth is None else depth_colours(depth),
        "depth predicted": depth_colours(samples.depth_predicted),
        "depth error": None if depth is None else _error(samples.depth_predicted, depth, DEPTH_ERROR_SCALE),
        "mask": None if mask is None else greys(mask),
        "mask predicted": greys(samples.mask_predicted),
        "mask error": None if mask is None else _error(samples.mask_predicted, mask, 1.0),
    }
    return {heading: images for heading, images in known.items() if images is not None}


def _error(predicted: Plane, true: Plane, scale: float) -> RGB:
    with np.errstate(invalid="ignore"):
        return error_colours(np.abs(predicted - true) / scale)


def _groups(headings: Sequence[str]) -> list[int]:
    """Return how many columns are inputs, how many of depth, how many of the mask."""
    counts = [sum(heading.startswith(start) for heading in headings) for start in ("depth", "mask")]
    return [len(headings) - sum(counts), *counts]


def _frame(layout: SheetLayout, left: int, row: int) -> tuple[int, int, int, int]:
    """Return the line around a cell: left, upper, right and lower, all of them drawn."""
    top = layout.top(row)
    return left - 1, top - 1, left + layout.cell_width, top + layout.cell_height


def _fit(text: str, font: Font, width: int) -> str:
    """Cut the text at its end, with an ellipsis, until it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _draw_scales(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, font: Font, layout: SheetLayout, headings: Sequence[str]
) -> None:
    """Draw the keys of the colours, such as "depth 0 ▬ 1", into the last line, from the right."""
    scales: tuple[tuple[str, str, Callable[[NDArray[np.floating]], RGB]], ...] = (
        ("mask error", "1", error_colours),
        ("depth error", f"{DEPTH_ERROR_SCALE:g} or more", error_colours),
        ("depth", "1", depth_colours),
    )
    height, width = layout.scaled(12), layout.scaled(MIN_CELL)
    middle = sheet.height - layout.margin - height // 2
    right = sheet.width - layout.margin
    for name, end, colours in scales:
        if name not in headings and name != "depth":
            continue
        draw.text((right, middle), end, _FAINT_INK, font, anchor="rm")
        right -= round(font.getlength(end)) + layout.scaled(6)
        ramp = np.tile(colours(np.linspace(0.0, 1.0, width)), (height, 1, 1))
        sheet.paste(Image.fromarray(ramp), (right - width, middle - height // 2))
        draw.rectangle((right - width, middle - height // 2, right - 1, middle + height // 2 - 1), outline=_HAIRLINE)
        right -= width + layout.scaled(6)
        draw.text((right, middle), f"{name} 0", _FAINT_INK, font, anchor="rm")
        right -= round(font.getlength(f"{name} 0")) + layout.scaled(28)
