"""Picks panels and turns them into data URIs of bounded size. Reads pictures; knows nothing of the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from dtrain.report.run_data import PanelFile

MAX_FRAMES = 6
FRAME_BYTES = 300_000
LATEST_BYTES = 1_500_000


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: `uri` is a data: URI; `width` and `height` in pixels."""

    global_step: int
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Album:
    """The newest panel, large; some panels from the first to the last; the names of those not readable."""

    latest: Picture | None
    frames: Sequence[Picture]
    unreadable: Sequence[str]


def make_album(panels: Sequence[PanelFile]) -> Album:
    """Embed the panels that `pick_frames` picks, the last one also large."""
    frames: list[Picture] = []
    unreadable: list[str] = []
    latest = None
    for panel in pick_frames(panels):
        try:
            frames.append(embed(panel, FRAME_BYTES))
            if panel is panels[-1]:
                latest = embed(panel, LATEST_BYTES)
        except OSError:
            unreadable.append(panel.path.name)
    return Album(latest, frames, unreadable)


def pick_frames(panels: Sequence[PanelFile], count: int = MAX_FRAMES) -> list[PanelFile]:
    """Return at most `count` (2 or more) panels, evenly spaced in their order, the first and last among them."""
    if len(panels) <= count:
        return list(panels)
    return [panels[round(index * (len(panels) - 1) / (count - 1))] for index in range(count)]


def embed(panel: PanelFile, max_bytes: int) -> Picture:
    """Return the picture, as it is if it has at most `max_bytes`; else as JPEG, and smaller if that must be.

    Raises OSError if the file is not a whole picture that Pillow reads and takes for safe.
    """
    data = panel.path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            image = opened.convert("RGB")
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(f"{panel.path.name}: {error}") from error
    kind = "png"
    if len(data) > max_bytes:
        kind, (image, data) = "jpeg", _shrink(image, max_bytes)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return Picture(panel.global_step, uri, image.width, image.height)


def _shrink(image: Image.Image, max_bytes: int) -> tuple[Image.Image, bytes]:
    data = _jpeg(image)
    while len(data) > max_bytes and min(image.size) > 1:
        size = (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))
        image = image.resize(size, Image.Resampling.LANCZOS)
        data = _jpeg(image)
    return image, data


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, subsampling=0)
    return file.getvalue()
