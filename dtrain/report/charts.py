"""Which charts tell of a run, or of several, in groups. Pure functions from records to SVG text."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dtrain.metric_names import metric_name
from dtrain.report.chart import Mark, Series, line_chart
from dtrain.report.curve import Points
from dtrain.report.run_data import RunData
from dtrain.report.words import utc

DEPTH_METRICS = ("depth_mse", "depth_abs_rel", "depth_delta1", "depth_ssim")
MASK_METRICS = ("mask_iou", "mask_f1", "mask_boundary_f1")

_ZERO_TO_ONE = {"depth_delta1", "depth_ssim", *MASK_METRICS}
_MAX_EPOCH_MARKS = 24
_LOG_FROM_SPREAD = 20
_SAMPLES_AXIS = "training samples seen"

Limits = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A chart under its heading; `svg` is one whole element."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class ChartGroup:
    """Charts that belong together, at least one."""

    title: str
    charts: Sequence[Chart]


def run_charts(run: RunData) -> list[ChartGroup]:
    """Return the charts of one run, with its stages, epochs and resumes marked."""
    marks = _marks(run)

    def chart(title: str, y_label: str, series: Sequence[Series], limits: Limits | None = None) -> list[Chart]:
        return _chart(title, y_label, series, x_end=run.samples, marks=marks, limits=limits)

    def evaluated(metric: str) -> list[Chart]:
        series = [Series(split, points) for (split, name), points in run.evaluations.items() if name == metric]
        return chart(f"{metric_name(metric).title}, evaluated", short_title(metric), series, _limits(metric))

    parts = [Series(metric_name(name).title, points) for name, points in run.training.items() if _is_loss_term(name)]
    loss = [Series("loss", run.training.get("loss", Points()))]
    return _groups(
        ("Losses in training", [*chart("Training loss", "loss", loss), *chart("Parts of the loss", "a step", parts)]),
        ("Depth, evaluated", _each(DEPTH_METRICS, evaluated)),
        ("Mask, evaluated", _each(MASK_METRICS, evaluated)),
        (
            "Optimizer and speed",
            [
                *chart("Learning rate", "learning rate", [_training(run, "learning_rate")], (0.0, 0.0)),
                *chart("Gradient norm", "L2 norm", [_training(run, "gradient_norm")]),
                *chart("Throughput", "samples/s", [Series("samples/s", run.speed)], (0.0, 0.0)),
                *chart("Waiting for data", "% of time", [Series("data wait", _percent(run.data_wait))], (0.0, 1.0)),
            ],
        ),
    )


def stage_charts(run: RunData) -> list[Chart]:
    """Return for each stage, if they are several, a chart of its training losses alone."""
    numbers = sorted({stage for stage, _ in run.by_stage})
    starts = {boundary.stage: boundary for boundary in reversed(run.boundaries)}
    charts = []
    for number in numbers if len(numbers) > 1 else ():
        start = starts.get(number)
        series = [
            Series(metric_name(name).title, _shifted(points, start.samples if start else 0.0))
            for (stage, name), points in run.by_stage.items()
            if stage == number and (name == "loss" or _is_loss_term(name))
        ]
        title = f"Stage {number}" + (f", {start.size} px" if start and start.size else "")
        charts += _chart(title, "loss and its parts", series, x_label="samples seen in the stage")
    return charts


def comparison_charts(runs: Sequence[RunData], *, legend: bool = True) -> list[ChartGroup]:
    """Return charts with one line a run, by its name, always in the same style; stages that all share are marked.

    The weighted loss is shown only where no two runs weight it differently; parts where two runs or more have them.
    """
    shared = _marks_of_stages(runs)

    def chart(
        title: str, y_label: str, of_run: Callable[[RunData], Points | None], limits: Limits | None = None
    ) -> list[Chart]:
        lines = [of_run(run) or Points() for run in runs]
        if sum(bool(line.x) for line in lines) < min(2, len(runs)):
            return []
        series = [Series(run.name, _without_range(line)) for run, line in zip(runs, lines, strict=True)]
        end = max(run.samples for run in runs)
        return _chart(title, y_label, series, x_end=end, marks=shared, limits=limits, legend=legend)

    def evaluated(metric: str) -> list[Chart]:
        title = f"{metric_name(metric).title}, evaluated"
        return chart(title, short_title(metric), lambda run: evaluation_curve(run, metric), _limits(metric))

    def trained(name: str) -> list[Chart]:
        return chart(f"{metric_name(name).title}, in training", "a step", lambda run: run.training.get(name))

    terms = dict.fromkeys(name for run in runs for name in run.training if _is_loss_term(name))
    losses = [{key: value for key, value in run.settings.items() if key.startswith("loss.")} for run in runs]
    same_loss = all(loss == losses[0] for loss in losses)
    return _groups(
        ("Depth, evaluated", _each(DEPTH_METRICS, evaluated)),
        ("Mask, evaluated", _each(MASK_METRICS, evaluated)),
        ("Losses in training", _each(["loss", *terms] if same_loss else terms, trained)),
        (
            "Optimizer and speed",
            [
                *chart("Learning rate", "learning rate", lambda run: run.training.get("learning_rate"), (0.0, 0.0)),
                *chart("Throughput", "samples/s", lambda run: run.speed, (0.0, 0.0)),
                *chart("Waiting for data", "% of time", lambda run: _percent(run.data_wait), (0.0, 1.0)),
            ],
        ),
    )


def evaluation_curve(run: RunData, metric: str) -> Points | None:
    """Return a metric over the run, on the split that the run itself was last evaluated on; None if it has none."""
    curves = [points for (_, name), points in run.evaluations.items() if name == metric]
    return max(curves, key=lambda points: points.x[-1] if points.x else -1.0, default=None)


def _groups(*groups: tuple[str, list[Chart]]) -> list[ChartGroup]:
    return [ChartGroup(title, charts) for title, charts in groups if charts]


def _each(names: Iterable[str], charts: Callable[[str], list[Chart]]) -> list[Chart]:
    return [chart for name in names for chart in charts(name)]


def _chart(
    title: str,
    y_label: str,
    series: Sequence[Series],
    *,
    x_label: str = _SAMPLES_AXIS,
    x_end: float | None = None,
    marks: Sequence[Mark] = (),
    limits: Limits | None = None,
    legend: bool = True,
) -> list[Chart]:
    """Return the chart, or nothing if there is nothing to draw."""
    if not any(line.points.x for line in series):
        return []
    log = limits is None and _spread(series) > _LOG_FROM_SPREAD
    svg = line_chart(
        series,
        title=f"{title}: {y_label} over {x_label}",
        x_label=x_label,
        y_label=y_label,
        x_end=x_end,
        marks=marks,
        y_limits=limits,
        log=log,
        legend=legend,
    )
    return [Chart(title, Markup(svg))]


def _training(run: RunData, name: str) -> Series:
    return Series(metric_name(name).title, run.training.get(name, Points()))


def _is_loss_term(name: str) -> bool:
    return name not in ("loss", "learning_rate", "gradient_norm")


def short_title(metric: str) -> str:
    """Return the title of a metric without its task: Depth MSE is MSE, Mask accuracy is Accuracy."""
    short = metric_name(metric).title.removeprefix("Depth ").removeprefix("Mask ")
    return short[:1].upper() + short[1:] if short[:1].isascii() else short


def _limits(metric: str) -> Limits | None:
    return (0.0, 1.0) if metric in _ZERO_TO_ONE else None


def _percent(points: Points) -> Points:
    def scale(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(100 * value for value in values)

    return Points(points.x, scale(points.y), scale(points.low), scale(points.high))


def _shifted(points: Points, by: float) -> Points:
    return Points(tuple(max(0.0, x - by) for x in points.x), points.y, points.low, points.high)


def _without_range(points: Points) -> Points:
    return Points(points.x, points.y, points.y, points.y)


def _spread(series: Sequence[Series]) -> float:
    """Return the largest y ÷ the smallest, of those above 0."""
    values = [y for line in series for y in line.points.y if math.isfinite(y) and y > 0]
    return max(values) / min(values) if values else 1.0


def _marks(run: RunData) -> list[Mark]:
    """Return stages (labelled if they are several), epochs (left out if they are many) and resumes."""
    marks = _stage_marks(run, epochs=len(run.boundaries) <= _MAX_EPOCH_MARKS)
    for event in run.events:
        if event.name == "resume" and event.global_step is not None:
            title = f"resumed at step {event.global_step:,}, {utc(event.time)} UTC"
            marks.append(Mark(run.samples_by_step.at(event.global_step), "resume", title=title))
    return [mark for mark in marks if math.isfinite(mark.x)]


def _marks_of_stages(runs: Sequence[RunData]) -> list[Mark]:
    """Return the marks of the stages, if they are the same in all runs."""
    marks = [_stage_marks(run, epochs=False) for run in runs]
    return marks[0] if marks and all(other == marks[0] for other in marks) else []


def _stage_marks(run: RunData, *, epochs: bool) -> list[Mark]:
    stages = len({boundary.stage for boundary in run.boundaries})
    marks = []
    previous_stage = None
    for boundary in run.boundaries:
        new_stage = stages > 1 and boundary.stage != previous_stage
        previous_stage = boundary.stage
        title = f"stage {boundary.stage}, epoch {boundary.epoch}"
        if new_stage:
            label = f"{boundary.size} px" if boundary.size else f"stage {boundary.stage}"
            marks.append(Mark(boundary.samples, "stage", label, title))
        elif epochs:
            label = "" if stages > 1 else f"epoch {boundary.epoch}"
            marks.append(Mark(boundary.samples, "epoch", label, title))
    return marks
