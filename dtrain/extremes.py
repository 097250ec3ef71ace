"""The worst and the best samples of an evaluation, with what is needed to draw them. Keeps K of each, never more."""

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtrain.data.loader import Batch
from dtrain.evaluator import Seen, of_each_process, panel_samples
from dtrain.figures import Figures
from dtrain.metric_names import metric_name
from dtrain.model import Prediction
from dtrain.panel import PanelSamples, draw_panel
from dtrain.sample_sums import figures_of
from dtrain.vote import Vote


@dataclass(frozen=True)
class Ranked:
    """A sample: of two, the one with the greater `merit` is better; what is not a number is the worst.

    `position` tells it from all others of the split, which its key may not: keys are unique within a shard only.
    """

    merit: tuple[float, float]
    """The value that it is ranked by, and for equals the error of depth, both turned so that more is better."""
    key: str
    position: int
    figures: Figures


class Extremes:
    """The `count` worst and best samples by `metric`, of equals by depth_rmse; where it is not defined, none."""

    def __init__(self, metric: str, count: int) -> None:
        self.metric = metric
        self._count = count
        self.worst: list[Ranked] = []
        self.best: list[Ranked] = []
        """Both from the end of the scale inwards."""
        self._pictures: dict[int, PanelSamples] = {}

    def add(self, seen: Seen) -> None:
        """Take a batch."""
        for row, (key, sums) in enumerate(zip(seen.batch.keys, seen.sums, strict=True)):
            figures = figures_of(sums)
            if self.metric in figures:
                merit = (_merit(self.metric, figures), _merit("depth_rmse", figures))
                self._offer(Ranked(merit, key, seen.first + row, figures))
        self._pictures = {
            position: _picture(seen, position - seen.first) if position >= seen.first else self._pictures[position]
            for position in self._kept()
        }

    def gathered(self, vote: Vote) -> "Extremes":
        """Those of all processes together, the same on each; to be called by every process."""
        together = Extremes(self.metric, self._count)
        for found in of_each_process(vote, {each.position: each for each in (*self.worst, *self.best)}):
            for ranked in found.values():
                together._offer(ranked)
        kept = together._kept()
        own = {position: picture for position, picture in self._pictures.items() if position in kept}
        for pictures in of_each_process(vote, own):
            together._pictures |= pictures
        return together

    def draw(self, samples: Sequence[Ranked]) -> Image.Image:
        """The panel of some of them, at least one, each with its most telling figures."""
        pictures = [self._pictures[ranked.position] for ranked in samples]
        shown = dict.fromkeys([self.metric, "mask_iou", "depth_rmse"])
        captions = ["   ".join([ranked.key, *(_caption(name, ranked.figures) for name in shown)]) for ranked in samples]
        return draw_panel(_joined(pictures, captions))

    def _kept(self) -> set[int]:
        return {ranked.position for ranked in (*self.worst, *self.best)}

    def _offer(self, ranked: Ranked) -> None:
        """Take a sample among the worst or the best if it belongs there."""
        insort(self.worst, ranked, key=lambda each: (each.merit, each.key, each.position))
        insort(self.best, ranked, key=lambda each: (-each.merit[0], -each.merit[1], each.key, each.position))
        del self.worst[self._count :], self.best[self._count :]


def _merit(metric: str, figures: Figures) -> float:
    value = figures[metric] if metric_name(metric).better == "higher" else -figures[metric]
    return -math.inf if math.isnan(value) else value


def _caption(metric: str, figures: Figures) -> str:
    name = metric_name(metric)
    return f"{name.title} {name.show(figures[metric])}"


def _picture(seen: Seen, row: int) -> PanelSamples:
    batch, one = seen.batch, slice(row, row + 1)
    part = Batch(batch.keys[one], batch.images[one], batch.depth[one], batch.mask[one])
    return panel_samples(part, Prediction(seen.prediction.depth[one], seen.prediction.mask_logits[one]))


def _joined(pictures: Sequence[PanelSamples], captions: Sequence[str]) -> PanelSamples:
    def join(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(picture, name) for picture in pictures])

    names = ("bg", "fgbg", "depth", "depth_predicted", "mask", "mask_predicted")
    return PanelSamples(keys=captions, **{name: join(name) for name in names})
