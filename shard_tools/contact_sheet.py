"""A contact sheet of tuples: bg, fgbg, depth, mask, and the mask drawn over fgbg. Never reads or writes files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shard_tools.components import COMPONENTS
from shard_tools.pixels import Pixels

CELL = 160
"""Longest side of a drawn image, in pixels."""

ROWS_IN_ONE_BLOCK = 8
"""With more tuples than these there are two blocks side by side."""

_HEADINGS = ("bg", "fgbg", "depth", "mask", "mask over fgbg")
_MARGIN, _GAP, _BLOCK_GAP = 20, 6, 40
_HEADING_HEIGHT, _CAPTION_HEIGHT = 26, 24
_PAPER, _INK, _FAINT_INK, _HAIRLINE = (255, 255, 255), (34, 37, 42), (96, 103, 112), (214, 217, 222)
_TINT = np.array((255, 0, 144))
_TINT_SHARE = 0.3

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Row:
    """A tuple that is ready to be drawn: its caption, and an image for each heading, no side longer than CELL."""

    caption: str
    cells: tuple[Image.Image, ...]


def make_row(caption: str, images: Mapping[str, Pixels]) -> Row:
    """Fit the decoded images of a tuple, by component, into cells.

    Small ones are enlarged by a whole factor without interpolation, large ones reduced; each keeps its shape. The
    mask (pixels above 127) is drawn over fgbg as a tint with an outline, at the size of fgbg.
    """
    cells = {name: _fit(Image.fromarray(images[name])) for name in COMPONENTS}
    mask = cells["mask"].resize(cells["fgbg"].size, Image.Resampling.NEAREST)
    over = _draw_mask(np.asarray(cells["fgbg"]), np.asarray(mask) > 127)
    return Row(caption, (*cells.values(), Image.fromarray(over)))


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """The contact sheet of one row or more, RGB; down the first block, then down the second."""
    blocks = [rows] if len(rows) <= ROWS_IN_ONE_BLOCK else [rows[: -(-len(rows) // 2)], rows[-(-len(rows) // 2) :]]
    width = max(cell.width for row in rows for cell in row.cells)
    heights = [
        max(cell.height for block in blocks for row in block[number : number + 1] for cell in row.cells)
        for number in range(len(blocks[0]))
    ]
    block_width = len(_HEADINGS) * (width + _GAP) - _GAP
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + len(blocks) * (block_width + _BLOCK_GAP) - _BLOCK_GAP,
            2 * _MARGIN + _HEADING_HEIGHT + sum(heights) + len(heights) * _CAPTION_HEIGHT,
        ),
        _PAPER,
    )
    for number, block in enumerate(blocks):
        _draw_block(sheet, block, heights, left=_MARGIN + number * (block_width + _BLOCK_GAP), width=width)
    return sheet


def _draw_block(sheet: Image.Image, rows: Sequence[Row], heights: Sequence[int], *, left: int, width: int) -> None:
    draw = ImageDraw.Draw(sheet)
    heading_font, caption_font = ImageFont.load_default(15), ImageFont.load_default(13)
    lefts = [left + column * (width + _GAP) for column in range(len(_HEADINGS))]
    for heading, x in zip(_HEADINGS, lefts, strict=True):
        draw.text((x, _MARGIN), _shorten(heading, heading_font, width), _INK, heading_font)
    top = _MARGIN + _HEADING_HEIGHT
    for row, height in zip(rows, heights, strict=False):
        for cell, x in zip(row.cells, lefts, strict=True):
            sheet.paste(cell, (x, top))
            draw.rectangle((x - 1, top - 1, x + cell.width, top + cell.height), outline=_HAIRLINE)
        caption = _shorten(row.caption, caption_font, lefts[-1] + width - left)
        draw.text((left, top + height + 3), caption, _FAINT_INK, caption_font)
        top += height + _CAPTION_HEIGHT


def _fit(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    if longest <= CELL:
        factor = CELL // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize([max(1, round(side * CELL / longest)) for side in image.size], Image.Resampling.BOX)


def _draw_mask(fgbg: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """`fgbg`, uint8 (H, W, 3), with the `mask`, bool (H, W), as a tint and a line of one pixel around it."""
    padded = np.pad(mask, 1)
    grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    share = np.where(mask, _TINT_SHARE, grown)[..., np.newaxis]
    drawn: Pixels = np.rint(fgbg * (1 - share) + _TINT * share).astype(np.uint8)
    return drawn


def _shorten(text: str, font: _Font, width: int) -> str:
    """Cut the text at its end, with an ellipsis, until it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
