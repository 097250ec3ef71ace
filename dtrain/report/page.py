"""From the record of a run to the text of its page. Pure apart from reading the template beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files

import jinja2
from markupsafe import Markup

from dtrain.metric_names import MetricName, metric_name
from dtrain.report.chart import Mark, Series, line_chart
from dtrain.report.curve import Points
from dtrain.report.event_rows import event_rows
from dtrain.report.goodput_words import time_parts
from dtrain.report.pictures import Album, Picture
from dtrain.report.run_data import Evaluation, RunData
from dtrain.report.words import count, duration, percent, times, utc

_MAX_EPOCH_MARKS = 24
_LOG_FROM_SPREAD = 20
_SAMPLES_AXIS = "training samples seen"


@dataclass(frozen=True)
class _Figure:
    """One of the key results: a large value under its label, with a line of explanation."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class _ResultRow:
    metric: MetricName
    model: str
    trivial: Sequence[str]


@dataclass(frozen=True)
class _Chart:
    title: str
    svg: Markup


def render_page(run: RunData, album: Album) -> str:
    """Return the whole HTML page of a run and its panels; all that comes from the run is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = count
    template = environment.from_string(files("dtrain.report").joinpath("page.html").read_text("utf-8"))
    evaluation = run.latest_evaluation
    return template.render(
        run=run,
        last_seen=utc(run.lives.stretches[-1][1]) if run.lives.stretches else "",
        figures=_figures(run),
        evaluation=evaluation,
        results=_results(evaluation) if evaluation else [],
        latest=album.latest,
        frames=album.frames if len(album.frames) > 1 else [],
        caption=partial(_panel_caption, run),
        charts=_charts(run),
        has_stages=len({boundary.stage for boundary in run.boundaries}) > 1,
        time_parts=time_parts(run.goodput) if run.goodput else [],
        duration=duration,
        percent=percent,
        story=_story(run),
        event_rows=event_rows(run.events),
    )


def _figures(run: RunData) -> list[_Figure]:
    figures = []
    evaluation = run.latest_evaluation
    if evaluation:
        figures += [figure for figure in (_iou_figure(evaluation), _depth_figure(evaluation)) if figure]
    figures.append(_Figure("Samples seen", f"{run.samples:,}", f"in {count(run.global_step, 'step')}"))
    if run.lives.stretches:
        figures.append(_time_figure(run))
    if run.goodput:
        detail = f"useful, of {duration(run.goodput.seconds.total)} in all"
        figures.append(_Figure("Goodput", percent(run.goodput.share), detail))
    return figures


def _time_figure(run: RunData) -> _Figure:
    """Return how long the run was alive: from its processes' uptimes, or else from the times of its events."""
    sessions, seconds, away = len(run.lives.stretches), run.lives.seconds, run.lives.seconds_away
    if run.goodput:
        sessions, away = run.goodput.sessions, run.goodput.seconds.away
        seconds = run.goodput.seconds.total - away
    detail = count(sessions, "session")
    if away >= 1:
        detail += f", and {duration(away)} away between them"
    return _Figure("Time running", duration(seconds), detail)


def _iou_figure(evaluation: Evaluation) -> _Figure | None:
    if "mask_iou" not in evaluation.metrics:
        return None
    detail = f"on {evaluation.split}; 1 is perfect"
    for name, metrics in evaluation.trivial.items():
        if "mask_iou" in metrics:
            detail += f", {name} has {metrics['mask_iou']:.2g}"
    return _Figure("Mask IoU", f"{evaluation.metrics['mask_iou']:.3f}", detail)


def _depth_figure(evaluation: Evaluation) -> _Figure | None:
    error = evaluation.metrics.get("depth_mse")
    if error is None:
        return None
    variance = evaluation.metrics.get(
        "depth_variance", evaluation.trivial.get("mean depth", {}).get("depth_mse", math.nan)
    )
    if not variance > 0:
        return _Figure("Depth MSE", f"{error:.3g}", f"on {evaluation.split}, depth in [0, 1]")
    return _Figure(
        "Depth MSE ÷ variance", f"{error / variance:.1%}", f"{error:.5f} of {variance:.5f}, on {evaluation.split}"
    )


def _results(evaluation: Evaluation) -> list[_ResultRow]:
    rows = []
    for key, value in evaluation.metrics.items():
        metric = metric_name(key)
        trivial = [metric.show(metrics[key]) if key in metrics else "–" for metrics in evaluation.trivial.values()]
        rows.append(_ResultRow(metric, metric.show(value), trivial))
    return rows


def _charts(run: RunData) -> list[_Chart]:
    marks = _marks(run)
    charts = []

    def add(title: str, y_label: str, series: list[Series], limits: tuple[float, float] | None = None) -> None:
        if any(line.points.x for line in series):
            svg = line_chart(
                series,
                title=f"{title}: {y_label} over {_SAMPLES_AXIS}",
                x_label=_SAMPLES_AXIS,
                y_label=y_label,
                x_end=run.samples,
                marks=marks,
                y_limits=limits,
                log=limits is None and _spread(series) > _LOG_FROM_SPREAD,
            )
            charts.append(_Chart(title, Markup(svg)))

    training = dict(run.training)
    loss = Series("loss", training.pop("loss", Points()))
    learning_rate = Series("learning rate", training.pop("learning_rate", Points()))
    add("Training loss", "loss", [loss])
    add(
        "Parts of the loss",
        "mean a step",
        [Series(metric_name(name).title, points) for name, points in training.items()],
    )
    add("Mask IoU, evaluated", "IoU", _evaluated(run, "mask_iou"), (0.0, 1.0))
    add("Depth MSE, evaluated", "MSE", _evaluated(run, "depth_mse"))
    add("Learning rate", "learning rate", [learning_rate], (0.0, 0.0))
    add("Throughput", "samples/s", [Series("samples/s", run.speed)], (0.0, 0.0))
    add("Waiting for data", "% of time", [Series("data wait", _percent(run.data_wait))], (0.0, 1.0))
    return charts


def _evaluated(run: RunData, metric: str) -> list[Series]:
    return [
        Series(f"{metric_name(name).title}, {split}", points)
        for (split, name), points in run.evaluations.items()
        if name == metric
    ]


def _percent(points: Points) -> Points:
    def scale(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(100 * value for value in values)

    return Points(points.x, scale(points.y), scale(points.low), scale(points.high))


def _spread(series: Sequence[Series]) -> float:
    """Return the largest y ÷ the smallest, of those above 0."""
    values = [y for line in series for y in line.points.y if math.isfinite(y) and y > 0]
    return max(values) / min(values) if values else 1.0


def _marks(run: RunData) -> list[Mark]:
    """Return stages (labelled if they are several), epochs (left out if they are many) and resumes."""
    stages = len({boundary.stage for boundary in run.boundaries})
    epochs_shown = len(run.boundaries) <= _MAX_EPOCH_MARKS
    marks = []
    previous_stage = None
    for boundary in run.boundaries:
        new_stage = stages > 1 and boundary.stage != previous_stage
        previous_stage = boundary.stage
        title = f"stage {boundary.stage}, epoch {boundary.epoch}"
        if new_stage:
            label = f"{boundary.size} px" if boundary.size else f"stage {boundary.stage}"
            marks.append(Mark(boundary.samples, "stage", label, title))
        elif epochs_shown:
            label = "" if stages > 1 else f"epoch {boundary.epoch}"
            marks.append(Mark(boundary.samples, "epoch", label, title))
    for event in run.events:
        if event.name == "resume" and event.global_step is not None:
            title = f"resumed at step {event.global_step:,}, {utc(event.time)} UTC"
            marks.append(Mark(run.samples_by_step.at(event.global_step), "resume", title=title))
    return [mark for mark in marks if math.isfinite(mark.x)]


def _panel_caption(run: RunData, picture: Picture) -> str:
    """Return when in the training the picture was drawn."""
    samples = run.samples_by_step.at(picture.global_step)
    return f"Step {picture.global_step:,}" + (f" · {samples:,.0f} samples" if math.isfinite(samples) else "")


def _story(run: RunData) -> str:
    """Return in a few words how often the run was interrupted and what was kept of it."""
    names = [event.name for event in run.events]
    parts = [f"{count(len(run.lives.stretches), 'session')}"]
    for name, verb in (("preempted", "preempted"), ("resume", "resumed"), ("failed", "failed")):
        if name in names:
            parts.append(f"{verb} {times(names.count(name))}")
    if "passed_over" in names:
        parts.append(f"{count(names.count('passed_over'), 'checkpoint')} passed over")
    checkpoints = f"{count(run.checkpoints, 'checkpoint')} written"
    if run.last_checkpoint_step is not None:
        checkpoints += f", the last at step {run.last_checkpoint_step:,}"
    return "; ".join([*parts, checkpoints]) + "."
