"""Curves and pictures for TensorBoard. What it shows can always be made again from metrics.jsonl and panels/."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from accelerate import Accelerator
from PIL import Image

from dtrain.points import points_of
from dtrain.run_folder import RunFolder
from dtrain.trackers import PANEL, open_alone


class TensorBoard:
    """On the main process alone.

    A full disk breaks the files of TensorBoard, whose writer then writes no more; `mend` makes them anew.
    """

    def __init__(self, run: RunFolder, accelerator: Accelerator, global_step: int) -> None:
        """Go on after `global_step`; points of that step and later ones, from before a kill, are forgotten."""
        self._run = run
        self._accelerator = accelerator
        self._broken = False
        self._note = run.tensorboard / "holds.json"
        if self._holds_all() and not self._clock_was_set_back():
            self._open(purge_step=global_step)
            self._add_again(global_step)
        else:
            self._make_anew()

    def add(self, points: Mapping[str, float], global_step: int) -> None:
        """Add a point to each curve."""
        if not self._broken:
            try:
                self._tracker.log(dict(points), step=global_step)
            except OSError:
                self._broken = True

    def add_picture(self, name: str, picture: Image.Image, global_step: int) -> None:
        """Add a picture."""
        import numpy as np

        if not self._broken:
            try:
                self._tracker.log_images({name: np.asarray(picture)[None]}, step=global_step, dataformats="NHWC")
            except OSError:
                self._broken = True

    def flush(self) -> None:
        """Hand all points to the kernel, and note how far they go."""
        if not self._broken:
            try:
                metrics = self._metrics_bytes()
                self._tracker.writer.flush()
                self._note.write_text(json.dumps({"metrics": metrics, "files": self._files()}))
            except OSError:
                self._broken = True

    def mend(self) -> None:
        """If a full disk broke the curves, make them anew; where the run folder is gone, leave it so."""
        if self._broken and self._run.path.is_dir():
            with suppress(OSError):
                self._make_anew()

    def finish(self) -> None:
        """Close the file. Raises OSError on a full disk."""
        self._tracker.finish()

    def _open(self, purge_step: int | None) -> None:
        _say_nothing_of_its_thread()
        arguments = {"purge_step": purge_step}
        self._tracker = open_alone(self._accelerator, "tensorboard", self._run.tensorboard.name, arguments)

    def _clock_was_set_back(self) -> bool:
        """Whether TensorBoard, which goes by the times in the names of files, would read an old one after a new one."""
        return max(self._files(), default="") > f"events.out.tfevents.{int(time.time())}"

    def _holds_all(self) -> bool:
        """Whether nothing of metrics.jsonl is missing here, by what was noted when points were handed over last.

        What a power cut took makes a file shorter than it was then; what came from another machine makes metrics.jsonl
        longer.
        """
        try:
            note = json.loads(self._note.read_text())
        except (OSError, ValueError):
            return False
        files = self._files()
        whole = all(files.get(name, 0) >= size for name, size in note["files"].items())
        return whole and note["metrics"] >= self._metrics_bytes()

    def _files(self) -> dict[str, int]:
        """The sizes of TensorBoard's files by name."""
        return {path.name: path.stat().st_size for path in self._run.tensorboard.glob("events.*")}

    def _metrics_bytes(self) -> int:
        return self._run.metrics.stat().st_size if self._run.metrics.exists() else 0

    def _make_anew(self) -> None:
        shutil.rmtree(self._run.tensorboard, ignore_errors=True)
        self._open(purge_step=None)
        self._broken = False
        self._add_all()
        self.flush()

    def _add_again(self, global_step: int) -> None:
        """Put back the points of the step that was forgotten: an evaluation may be on it that comes again."""
        for line in self._run.last_metrics(global_step):
            self._add_line(line)

    def _add_all(self) -> None:
        for line in self._lines():
            self._add_line(line)
        for path in sorted(self._run.panels.glob("step-*.png")):
            with Image.open(path) as picture:
                self.add_picture(PANEL, picture, int(path.stem.removeprefix("step-")))

    def _add_line(self, line: Mapping[str, Any]) -> None:
        if points := points_of(line):
            self.add(points, line["global_step"])

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self._run.metrics.exists():
            with self._run.metrics.open(encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)


def _say_nothing_of_its_thread() -> None:
    """An error that ends the thread in which TensorBoard writes comes up again in the next call, where it is handled.

    Python would print a traceback of it.
    """
    report = threading.excepthook
    if getattr(report, "func", None) is not _report_others:
        threading.excepthook = partial(_report_others, report)


def _report_others(report: Callable[[Any], object], error: Any) -> None:
    ours = isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard.")
    if not ours:
        report(error)
