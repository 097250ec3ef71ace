"""Run folders as a training writes them, and what a reader finds in a page about them."""

import base64
import html.parser
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dtrain.panel import PanelSamples, draw_panel
from dtrain.report import write_report

BATCH = 32
EPOCH_STEPS = 30
T0 = 1763800000.0  # 2025-11-22 08:26:40 UTC
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "img", "br", "input", "wbr"}


class Page(html.parser.HTMLParser):
    """What is in a page: its elements with attributes, the text that is shown, cells by row, charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.shown = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, "elements left open"
        self.charts = [ET.fromstring(part[: part.index("</svg>") + 6]) for part in _split_svg(text)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"unexpected </{tag}>"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.shown += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, start: str) -> list[str]:
        """Return the one row that has a cell beginning with `start`."""
        (found,) = [row for row in self.rows if any(cell.startswith(start) for cell in row)]
        return found

    def pictures(self) -> list[Image.Image]:
        prefixes = ("data:image/png;base64,", "data:image/jpeg;base64,")
        pictures: list[Image.Image] = []
        for image in self.attributes("img"):
            assert image["src"].startswith(prefixes)
            picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1], validate=True)))
            picture.load()
            assert picture.size == (int(image["width"]), int(image["height"]))
            pictures.append(picture)
        return pictures

    def pictures_by_alt(self) -> dict[str, list[Image.Image]]:
        """Return the pictures by what they are called for those who do not see them, in their order."""
        found: dict[str, list[Image.Image]] = {}
        for image, picture in zip(self.attributes("img"), self.pictures(), strict=True):
            found.setdefault(image["alt"], []).append(picture)
        return found

    def chart(self, title: str) -> ET.Element:
        (found,) = [chart for chart in self.charts if chart.get("aria-label", "").startswith(title)]
        return found


def _split_svg(text: str) -> list[str]:
    return ["<svg" + part for part in text.split("<svg")[1:]]


class RunBuilder:
    """Writes a run folder line by line, as a training does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process_start: float | None = None
        path.mkdir()
        (path / "config.yaml").write_text("seed: 0\nmodel:\n  width: 0.25\n")

    def log(self, name: str, line: Mapping[str, object]) -> None:
        with (self.path / name).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def train(self, first: int, last: int, **changes: object) -> None:
        """Log the steps first to last, both included."""
        for step in range(first, last + 1):
            epoch = (step - 1) // EPOCH_STEPS
            depth_mse, mask_bce = 0.05 / step, 0.5 / step
            line = {
                "kind": "train",
                "stage": 0,
                "epoch": epoch,
                "step": step - epoch * EPOCH_STEPS,
                "global_step": step,
                "samples": step * BATCH,
                "size": 64,
                "learning_rate": 0.002,
                "loss": depth_mse + mask_bce,
                "depth_mse": depth_mse,
                "mask_bce": mask_bce,
            }
            self.log("metrics.jsonl", line | changes)

    def evaluate(self, step: int, **metrics: float) -> None:
        line = {"kind": "evaluate", "stage": 0, "epoch": 0, "global_step": step, "samples": step * BATCH}
        self.log("metrics.jsonl", {**line, "split": "test", "metrics": metrics})

    def event(self, after: float, event: str, global_step: int, **details: object) -> None:
        """Log an event, `after` seconds from the start, with the uptime of the process once that is known."""
        uptime = {} if self.process_start is None else {"uptime": after - self.process_start}
        self.log("events.jsonl", {"time": T0 + after, **uptime, "event": event, "global_step": global_step, **details})

    def status(self, state: str, reason: str = "") -> None:
        (self.path / "status.json").write_text(json.dumps({"state": state, "reason": reason, "global_step": 60}))

    def panel(self, step: int, size: int = 32, *, scene: int = 0, level: float = 0.5) -> None:
        """Draw a panel of two samples, predicted everywhere as `level`; `scene` chooses what is looked at."""
        folder = self.path / "panels"
        folder.mkdir(exist_ok=True)
        draw_panel(flat_samples(size, scene=scene, level=level)).save(folder / f"step-{step:08d}.png")

    def noise_panel(self, step: int) -> Path:
        """Draw a panel that compresses badly, as large as that of a last stage."""
        noise = np.random.default_rng(step)
        images = noise.integers(0, 256, (2, 2, 256, 256, 3), dtype=np.uint8)
        planes = noise.random((4, 2, 256, 256), dtype=np.float32)
        samples = PanelSamples(["a", "b"], images[0], images[1], planes[0], planes[1], planes[2], planes[3])
        path = self.path / "panels" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        draw_panel(samples).save(path, compress_level=1)
        return path

    def evaluation(self, **parts: object) -> None:
        """Write evaluation.json with these parts besides the figures."""
        result = {"checkpoint": "step-00000060", "split": "test", "samples": 640, "metrics": {"mask_iou": 0.5}, **parts}
        (self.path / "evaluation.json").write_text(json.dumps(result))

    def page(self) -> Page:
        return Page(write_report([self.path]).read_text())


def pixels(picture: Image.Image) -> set[tuple[int, ...]]:
    """Return all colours of a picture."""
    return {tuple(int(value) for value in pixel) for pixel in np.asarray(picture).reshape(-1, 3)}


def flat_samples(size: int, *, scene: int = 0, level: float = 0.5) -> PanelSamples:
    """Two samples of random tiles, 16 a picture whatever its size; truth is 0.25 in depth and 1 in the mask."""
    tiles = np.random.default_rng(scene).integers(0, 256, (2, 2, 4, 4, 3), dtype=np.uint8)
    images = tiles.repeat(size // 4, axis=2).repeat(size // 4, axis=3)
    planes = np.ones((2, size, size), np.float32)
    return PanelSamples(
        keys=["first", "second"],
        bg=images[0],
        fgbg=images[1],
        depth=0.25 * planes,
        depth_predicted=level * planes,
        mask=planes,
        mask_predicted=level * planes,
    )
