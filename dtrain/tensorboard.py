"""Curves and pictures for TensorBoard. What it shows can always be made again from metrics.jsonl and panels/."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
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
        if self._clock_was_set_back():
            shutil.rmtree(run.tensorboard, ignore_errors=True)
        there = any(run.tensorboard.glob("events.*"))
        self._open(purge_step=global_step)
        if there:
            self._add_again(global_step)
        else:
            self._add_all()

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
        """Hand all points to the kernel."""
        if not self._broken:
            try:
                self._tracker.writer.flush()
            except OSError:
                self._broken = True

    def mend(self) -> None:
        """If a full disk broke the curves, make them anew; where the run folder is gone, leave it so."""
        if self._broken and self._run.path.is_dir():
            shutil.rmtree(self._run.tensorboard, ignore_errors=True)
            try:
                self._open(purge_step=None)
            except OSError:
                return
            self._broken = False
            self._add_all()

    def finish(self) -> None:
        """Close the file. Raises OSError on a full disk."""
        self._tracker.finish()

    def _open(self, purge_step: int | None) -> None:
        arguments = {"purge_step": purge_step}
        self._tracker = open_alone(self._accelerator, "tensorboard", self._run.tensorboard.name, arguments)

    def _clock_was_set_back(self) -> bool:
        """Whether TensorBoard, which goes by the times in the names of files, would read an old one after a new one."""
        names = (path.name for path in self._run.tensorboard.glob("events.*"))
        return max(names, default="") > f"events.out.tfevents.{int(time.time())}"

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
