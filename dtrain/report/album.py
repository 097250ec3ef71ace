"""Which pictures a page shows of a run, or of several, and in how many bytes. Reads panels; writes nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dtrain.report.filmstrip import Film, Sheet, Strip, cut_up, make_film, make_strip, same_samples
from dtrain.report.pictures import Picture, embed_picture, read_picture
from dtrain.report.run_data import PanelFile, RunData
from dtrain.report.words import count

MAX_FRAMES = 8
LATEST_BYTES = 800_000
SIDE_BYTES = 550_000
SHARED_STRIP_BYTES = 2_000_000


@dataclass
class Album:
    """The newest panel whole, and how the same samples changed; the worst and the best of evaluated samples.

    `notes` name what could not be shown, and why.
    """

    latest: Picture | None = None
    caption: str = ""
    strip: Strip | None = None
    film: Film | None = None
    worst: Picture | None = None
    best: Picture | None = None
    notes: list[str] = field(default_factory=list)


def make_album(run: RunData) -> Album:
    """Embed some panels from the first to the last, cut up; the last one also whole; best and worst samples."""
    album = Album()
    sheets: list[Sheet] = []
    for panel in pick_frames(run.panels):
        name = f"panels/{panel.path.name}"
        picture = _read(panel.path, name, album.notes)
        if picture is None:
            continue
        if panel is run.panels[-1]:
            album.latest, album.caption = embed_picture(picture, LATEST_BYTES), _caption(run, panel)
        if sheet := cut_up(_label(run, panel), picture):
            sheets.append(sheet)
        else:
            album.notes.append(f"{name}: not a panel as this version draws them; left out of the strip over time")
    frames = [sheet for sheet in sheets if same_samples(sheet, sheets[-1])]
    if len(frames) < len(sheets):
        others = count(len(sheets) - len(frames), "panel")
        album.notes.append(f"{others} of other samples than those of the last one; left out of the strip over time")
    if len(frames) > 1:
        album.strip, album.film = make_strip(frames), make_film(frames)
    album.worst = _embed(run.worst_picture, album.notes)
    album.best = _embed(run.best_picture, album.notes)
    return album


def make_shared_album(runs: Sequence[RunData]) -> Album:
    """Cut up the last panel of each run and put the same samples of different runs beside each other."""
    album = Album()
    sheets: list[Sheet] = []
    for run in runs:
        sheet = _last_sheet(run, album.notes)
        if sheet and sheets and not same_samples(sheet, sheets[0]):
            album.notes.append(f"{run.name}: its panels are of other samples than those of {sheets[0].label}; left out")
        elif sheet:
            sheets.append(sheet)
    if len(sheets) > 1:
        album.strip = make_strip(sheets, SHARED_STRIP_BYTES)
    return album


def pick_frames(panels: Sequence[PanelFile], count: int = MAX_FRAMES) -> list[PanelFile]:
    """Return at most `count` (2 or more) panels, evenly spaced in their order, the first and last among them."""
    if len(panels) <= count:
        return list(panels)
    return [panels[round(index * (len(panels) - 1) / (count - 1))] for index in range(count)]


def _last_sheet(run: RunData, notes: list[str]) -> Sheet | None:
    if not run.panels:
        return None
    path = run.panels[-1].path
    name = f"{run.name}: panels/{path.name}"
    picture = _read(path, name, notes)
    sheet = cut_up(run.name, picture) if picture else None
    if picture and sheet is None:
        notes.append(f"{name}: not a panel as this version draws them; left out")
    return sheet


def _embed(path: Path | None, notes: list[str]) -> Picture | None:
    picture = _read(path, path.name, notes) if path else None
    return embed_picture(picture, SIDE_BYTES) if picture else None


def _read(path: Path, name: str, notes: list[str]) -> Image.Image | None:
    try:
        return read_picture(path)
    except OSError:
        notes.append(f"{name}: not a readable picture, left out")
        return None


def _label(run: RunData, panel: PanelFile) -> str:
    """Return the step of a panel, and the size of the stage's images."""
    samples = run.samples_by_step.at(panel.global_step)
    sizes = [boundary.size for boundary in run.boundaries if boundary.samples < samples and boundary.size]
    return f"Step {panel.global_step:,}" + (f", {sizes[-1]} px" if sizes else "")


def _caption(run: RunData, panel: PanelFile) -> str:
    samples = run.samples_by_step.at(panel.global_step)
    return f"Step {panel.global_step:,}" + (f" · {samples:,.0f} samples" if math.isfinite(samples) else "")
