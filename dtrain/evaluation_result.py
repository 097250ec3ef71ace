"""All that an evaluation found, and how it stands in evaluation.json. Pure data; touches no file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dtrain.breakdown import Breakdown, Part
from dtrain.extremes import Extremes, Ranked
from dtrain.figures import Figures
from dtrain.metric_names import metric_name
from dtrain.original_metrics import Logged


@dataclass(frozen=True)
class EvaluationResult:
    """Of one checkpoint on one split, the same on every process; `metric` is what samples are ranked by.

    `size` is the side in pixels at which predictions were judged, `input_size` that of the images the network saw.
    `trivial`: the figures of each trivial predictor. `original`: empty if it was not asked for.
    """

    checkpoint: str
    split: str
    samples: int
    size: int
    input_size: int
    figures: Figures
    trivial: dict[str, Figures]
    metric: str
    breakdown: Breakdown
    extremes: Extremes
    original: dict[str, Logged]

    @property
    def sides(self) -> str:
        """At what size it was judged, and seen."""
        seen = "" if self.input_size == self.size else f"; the network sees {self.input_size}×{self.input_size}"
        return f"judged at {self.size}×{self.size}{seen}"

    @property
    def parts(self) -> Mapping[str, Part]:
        """By background, the worst first."""
        return self.breakdown.parts(self.metric, higher_is_better=metric_name(self.metric).better == "higher")

    def to_json(self) -> dict[str, Any]:
        """As docs/metrics.md describes it; what is not finite is None, for which JSON has a word."""
        found = {
            "checkpoint": self.checkpoint,
            "split": self.split,
            "samples": self.samples,
            "size": self.size,
            "input_size": self.input_size,
            "metrics": self.figures,
            "trivial": self.trivial,
            "ranked_by": self.metric,
            "worst": _samples(self.extremes.worst),
            "best": _samples(self.extremes.best),
        }
        if self.breakdown.sums is not None:
            parts = self.parts.items()
            found["by_background"] = {name: {"samples": part.samples, "metrics": part.figures} for name, part in parts}
        if self.original:
            found["original_metrics"] = {name: asdict(logged) for name, logged in self.original.items()}
        return {key: _finite(value) for key, value in found.items()}


def _samples(samples: Sequence[Ranked]) -> list[dict[str, Any]]:
    return [{"key": ranked.key, "metrics": ranked.figures} for ranked in samples]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
