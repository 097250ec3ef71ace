"""Takes the lines of metrics.jsonl and sums them up in curves of bounded size. Opens no file."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dtrain.figures import trivial_figures
from dtrain.report.curve import Curve
from dtrain.report.evaluation import Evaluation
from dtrain.report.json_values import numbers, whole

_POSITION = {"kind", "stage", "epoch", "step", "global_step", "samples", "size"}


@dataclass(frozen=True)
class Boundary:
    """Where an epoch begins: after `samples` training samples; `size` is the side of the images in pixels."""

    samples: float
    stage: int
    epoch: int
    size: int | None


class MetricsLog:
    """Takes lines one by one. Steps that a resumed run does again replace what they were before.

    `samples` and `global_step`: how far the run came. `training` has a curve for each name, `by_stage` one for each
    (stage, name), `evaluations` one for each (split, metric); all over training samples seen.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.global_step = 0
        self.training: dict[str, Curve] = {}
        self.by_stage: dict[tuple[int, str], Curve] = {}
        self.evaluations: dict[tuple[str, str], Curve] = {}
        self.boundaries: list[Boundary] = []
        self.last_evaluation: Evaluation | None = None
        self.samples_by_step = Curve()
        self._not_finite: Counter[str] = Counter()

    @property
    def notes(self) -> list[str]:
        """What a reader should know besides."""
        return [
            f"{name} was not a finite number in {count:,} training steps: gaps in its curve"
            for name, count in self._not_finite.items()
            if count
        ]

    def take(self, line: Mapping[str, object]) -> bool:
        """Take one line; return whether it was understood."""
        samples, step = whole(line.get("samples")), whole(line.get("global_step"))
        if samples is None or step is None:
            return False
        if line.get("kind") == "train":
            self._take_training(line, samples, step)
            return True
        if line.get("kind") == "skipped":
            self._advance(samples, step)
            return True
        metrics = line.get("metrics")
        if line.get("kind") == "evaluate" and isinstance(metrics, dict):
            self._take_evaluation(line, numbers(metrics), samples)
            if step > self.global_step:
                self._advance(samples, step)
            return True
        return False

    def _take_training(self, line: Mapping[str, object], samples: int, step: int) -> None:
        while self.boundaries and samples <= self.samples and self.boundaries[-1].samples >= samples:
            self.boundaries.pop()
        stage, epoch = (whole(line.get(name)) or 0 for name in ("stage", "epoch"))
        latest = self.boundaries[-1] if self.boundaries else None
        if latest is None or (latest.stage, latest.epoch) != (stage, epoch):
            start = self._epoch_start(line, samples, step) if latest else 0.0
            self.boundaries.append(Boundary(start, stage, epoch, whole(line.get("size"))))
        if samples <= self.samples:
            self.by_stage = {key: curve for key, curve in self.by_stage.items() if key[0] <= stage}
        self._advance(samples, step)
        for name, value in numbers(line).items():
            if name not in _POSITION:
                self.training.setdefault(name, Curve()).add(samples, value)
                self.by_stage.setdefault((stage, name), Curve()).add(samples, value)
                self._not_finite[name] += not math.isfinite(value)

    def _advance(self, samples: int, step: int) -> None:
        self.samples, self.global_step = samples, step
        self.samples_by_step.add(step, samples)

    def _epoch_start(self, line: Mapping[str, object], samples: int, global_step: int) -> float:
        """Return the samples seen before the epoch of `line`, its first one: between those of the last line and its."""
        if not (self.samples < samples and self.global_step < global_step):
            return samples
        batch = (samples - self.samples) / (global_step - self.global_step)
        return max(self.samples, samples - batch * (whole(line.get("step")) or 0))

    def _take_evaluation(self, line: Mapping[str, object], metrics: dict[str, float], samples: int) -> None:
        split = str(line.get("split", ""))
        for name, value in metrics.items():
            self.evaluations.setdefault((split, name), Curve()).add(samples, value)
        known = metrics.get("depth_variance", -1) >= 0 and 0 <= metrics.get("mask_coverage", -1) <= 1
        self.last_evaluation = Evaluation(
            split=split,
            metrics=metrics,
            samples=whole(line.get("test_samples")),
            size=whole(line.get("size")),
            trivial=trivial_figures(metrics) if known else {},
        )
