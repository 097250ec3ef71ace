"""What evaluation.json says, as far as it can be understood. Pure functions from parsed JSON; opens no file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dtrain.report.json_values import numbers, whole


@dataclass(frozen=True)
class Part:
    """Metrics of some of the samples: of one, by its key, or of all on one background, by its name."""

    name: str
    metrics: Mapping[str, float]
    samples: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, on `samples` samples of `split` (None where not known).

    `trivial`: for each predictor that looks at nothing, by its name, its metrics. `backgrounds`, `worst` and `best`
    are empty where they were not looked for; `ranked_by` is the metric that made them so, if it is known.
    """

    split: str
    metrics: Mapping[str, float]
    samples: int | None = None
    size: int | None = None
    """In pixels, of what was judged; `input_size` of what the network saw."""
    input_size: int | None = None
    checkpoint: str | None = None
    trivial: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    backgrounds: Sequence[Part] = ()
    worst: Sequence[Part] = ()
    best: Sequence[Part] = ()
    ranked_by: str | None = None


def understand_evaluation(value: Mapping[str, object]) -> Evaluation | None:
    """Return the evaluation in the parsed file; None if it has no metrics. What is not as expected is left out."""
    metrics = value.get("metrics")
    if not isinstance(metrics, dict):
        return None
    return Evaluation(
        split=str(value.get("split", "")),
        metrics=numbers(metrics),
        samples=whole(value.get("samples")),
        size=whole(value.get("size")),
        input_size=whole(value.get("input_size")),
        checkpoint=None if value.get("checkpoint") is None else str(value["checkpoint"]),
        trivial={
            str(name): numbers(figures) for name, figures in _items(value.get("trivial")) if isinstance(figures, dict)
        },
        backgrounds=[part for name, entry in _items(value.get("by_background")) if (part := _part(name, entry))],
        worst=_samples(value.get("worst")),
        best=_samples(value.get("best")),
        ranked_by=None if value.get("ranked_by") is None else str(value["ranked_by"]),
    )


def _samples(value: object) -> list[Part]:
    entries = value if isinstance(value, list) else []
    parts = [_part(entry.get("key"), entry) for entry in entries if isinstance(entry, dict)]
    return [part for part in parts if part]


def _part(name: object, entry: object) -> Part | None:
    metrics = entry.get("metrics") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(metrics, dict):
        return None
    return Part(str(name), numbers(metrics), whole(entry.get("samples")))


def _items(value: object) -> Sequence[tuple[object, object]]:
    return list(value.items()) if isinstance(value, dict) else []
