"""Tables of what evaluations came to, by task. Pure functions from figures to text in rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dtrain.metric_names import MetricName, metric_name
from dtrain.report.evaluation import Evaluation, Part
from dtrain.report.settings import NOTHING

TASKS = {"Depth": "depth_", "Mask": "mask_"}
THE_DATA, OTHER = "The data", "Other"
_OF_A_PART = ("mask_iou", "mask_f1", "depth_mse", "depth_abs_rel")


@dataclass(frozen=True)
class ResultRow:
    """One metric of the model, and of the trivial predictors of its table."""

    metric: MetricName
    model: str
    trivial: Sequence[str]


@dataclass(frozen=True)
class ResultTable:
    """The metrics of one task; `trivial` are the names of the predictors that have any of them."""

    task: str
    trivial: Sequence[str]
    rows: Sequence[ResultRow]


@dataclass(frozen=True)
class PartRow:
    """One background or one sample: figures as text, and the first of them as a share, in [0, 1], of the largest."""

    name: str
    samples: int | None
    bar: float
    figures: Sequence[str]


@dataclass(frozen=True)
class PartTable:
    """Parts of an evaluation with the metrics that they have; none of either, and it is empty."""

    metrics: Sequence[MetricName]
    rows: Sequence[PartRow]


def by_task(metrics: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of metrics by the task that they judge, in the order given; tasks without any are left out.

    Figures of the data, such as the variance of the depth, and those that are not known make two tasks more.
    """
    tasks: dict[str, list[str]] = {task: [] for task in (*TASKS, THE_DATA, OTHER)}
    for key in metrics:
        tasks[_task(key)].append(key)
    return {task: keys for task, keys in tasks.items() if keys}


def result_tables(evaluation: Evaluation) -> list[ResultTable]:
    """Return a table for each task that has metrics."""
    tables = []
    for task, keys in by_task(evaluation.metrics).items():
        trivial = {name: figures for name, figures in evaluation.trivial.items() if not figures.keys().isdisjoint(keys)}
        rows = [
            ResultRow(
                metric_name(key),
                show_figure(key, evaluation.metrics),
                [show_figure(key, figures) for figures in trivial.values()],
            )
            for key in keys
        ]
        tables.append(ResultTable(task, list(trivial), rows))
    return tables


def show_figure(metric: str, figures: Mapping[str, float]) -> str:
    """Return a metric as text; a dash if it is not among the figures."""
    return metric_name(metric).show(figures[metric]) if metric in figures else NOTHING


def part_table(parts: Sequence[Part], ranked_by: str | None) -> PartTable:
    """Return parts in the order given, with the metric that they are ranked by and main ones that any of them has."""
    metrics = [key for key in _main_metrics(ranked_by) if any(key in part.metrics for part in parts)]
    longest = max((_bar(part, metrics) for part in parts), default=0.0)
    rows = [
        PartRow(
            part.name,
            part.samples,
            _bar(part, metrics) / longest if longest > 0 else 0.0,
            [show_figure(key, part.metrics) for key in metrics],
        )
        for part in parts
    ]
    return PartTable([metric_name(key) for key in metrics], rows)


def worst_first(parts: Sequence[Part], ranked_by: str | None) -> list[Part]:
    """Return parts by that metric, or the first main one that all of them have, the worst one first; else as given.

    Without the metric that they are ranked by, because it is not defined there, a part is the worst.
    """
    shared = (key for key in _main_metrics(None) if parts and all(key in part.metrics for part in parts))
    metric = ranked_by or next(shared, None)
    if metric is None:
        return list(parts)
    sign = 1 if metric_name(metric).better == "higher" else -1
    return sorted(parts, key=lambda part: _finite(sign * part.metrics.get(metric, math.nan)))


def _task(metric: str) -> str:
    name = metric_name(metric)
    if name.meaning and name.better is None:
        return THE_DATA
    return next((task for task, start in TASKS.items() if metric.startswith(start)), OTHER)


def _main_metrics(ranked_by: str | None) -> list[str]:
    return list(dict.fromkeys(key for key in (ranked_by, *_OF_A_PART) if key))


def _bar(part: Part, metrics: Sequence[str]) -> float:
    value = part.metrics.get(metrics[0], 0.0) if metrics else 0.0
    return max(0.0, value) if math.isfinite(value) else 0.0


def _finite(value: float) -> float:
    """Return the value for sorting; one that is not finite is worse than all others."""
    return value if math.isfinite(value) else -math.inf
