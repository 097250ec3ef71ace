"""The same samples in several panels, of one run over time or of several runs: as a strip, and as a film.

Cuts panels up and puts the cells together anew; knows nothing of the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dtrain.panel import panel_cells
from dtrain.panel_layout import MIN_CELL
from dtrain.report.pictures import Picture, embed_picture

STRIP_BYTES = 500_000
FILM_BYTES = 700_000
SAMPLES = 3
FILM_COLUMNS = ("fgbg", "depth", "depth predicted", "mask", "mask predicted")

_CELL = MIN_CELL
_GAP = 6
_THUMB = 16
_SAME_WITHIN = 12.0

Cells = list[dict[str, Image.Image]]


@dataclass(frozen=True)
class Sheet:
    """A panel cut up: for each of its first samples the cells by their heading, 128 × 128 pixels each."""

    label: str
    samples: Cells


@dataclass(frozen=True)
class StripRow:
    """One task of one sample: what is true, and what each sheet has for it."""

    task: str
    truth: Picture
    predicted: Sequence[Picture]


@dataclass(frozen=True)
class StripSample:
    """One sample: the picture that was looked at, and its rows."""

    picture: Picture
    rows: Sequence[StripRow]


@dataclass(frozen=True)
class Strip:
    """Samples below each other, sheets beside each other, under their labels."""

    labels: Sequence[str]
    samples: Sequence[StripSample]


@dataclass(frozen=True)
class Film:
    """All frames below each other in one picture, each as high as the others; their labels."""

    labels: Sequence[str]
    picture: Picture
    headings: Sequence[str]


def cut_up(label: str, panel: Image.Image) -> Sheet | None:
    """Return the first samples of a panel; None if it is none with truth and square images."""
    cells = panel_cells(panel)
    if cells is None:
        return None
    size = (_CELL, _CELL)
    samples = [
        {heading: cell.resize(size, Image.Resampling.BOX) for heading, cell in row.items()} for row in cells[:SAMPLES]
    ]
    return Sheet(label, samples)


def same_samples(a: Sheet, b: Sheet) -> bool:
    """Return whether two sheets show the same samples, whatever the size at which they were drawn."""
    return len(a.samples) == len(b.samples) and all(
        np.abs(_thumb(x["fgbg"]) - _thumb(y["fgbg"])).mean() < _SAME_WITHIN
        for x, y in zip(a.samples, b.samples, strict=True)
    )


def make_strip(sheets: Sequence[Sheet], max_bytes: int = STRIP_BYTES) -> Strip:
    """Return a strip of one sheet or more; the truth is that of the last one. It has at most `max_bytes`."""
    count = min(len(sheet.samples) for sheet in sheets)
    cell_bytes = max_bytes // max(1, count * (3 + 2 * len(sheets)))

    def row(task: str, sample: int) -> StripRow:
        predicted = [sheet.samples[sample][f"{task} predicted"] for sheet in sheets]
        return StripRow(
            task,
            embed_picture(sheets[-1].samples[sample][task], cell_bytes),
            [embed_picture(cell, cell_bytes) for cell in predicted],
        )

    samples = [
        StripSample(
            embed_picture(sheets[-1].samples[sample]["fgbg"], cell_bytes),
            [row(task, sample) for task in ("depth", "mask")],
        )
        for sample in range(count)
    ]
    return Strip([sheet.label for sheet in sheets], samples)


def make_film(sheets: Sequence[Sheet], max_bytes: int = FILM_BYTES) -> Film:
    """Return a film of one sheet or more, a frame each: samples below each other, `FILM_COLUMNS` beside each other."""
    rows = min(len(sheet.samples) for sheet in sheets)
    step = _CELL + _GAP
    reel = Image.new("RGB", (len(FILM_COLUMNS) * step - _GAP, len(sheets) * rows * step), "white")
    for frame, sheet in enumerate(sheets):
        for row, sample in enumerate(sheet.samples[:rows]):
            for column, heading in enumerate(FILM_COLUMNS):
                reel.paste(sample[heading], (column * step, (frame * rows + row) * step))
    return Film([sheet.label for sheet in sheets], embed_picture(reel, max_bytes), FILM_COLUMNS)


def _thumb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((_THUMB, _THUMB), Image.Resampling.BOX), dtype=np.float32)
