"""From the record of a run to the text of its page. Pure apart from the templates beside it."""

import math
from dataclasses import dataclass

from dtrain.report.album import Album
from dtrain.report.charts import run_charts, stage_charts
from dtrain.report.comparison import median_data_wait, median_speed
from dtrain.report.evaluation import Evaluation
from dtrain.report.event_rows import event_rows
from dtrain.report.goodput_words import time_parts
from dtrain.report.results import part_table, result_tables, worst_first
from dtrain.report.run_data import RunData
from dtrain.report.settings import summarize
from dtrain.report.stage_rows import stage_table
from dtrain.report.templates import render
from dtrain.report.words import count, duration, percent, times, utc

MAX_BACKGROUNDS = 200
_BACKGROUNDS_SHOWN = 10


@dataclass(frozen=True)
class _Figure:
    """One of the key results: a large value under its label, with a line of explanation."""

    label: str
    value: str
    detail: str


def render_page(run: RunData, album: Album) -> str:
    """Return the whole HTML page of a run and its pictures; all that comes from the run is escaped."""
    evaluation = run.latest_evaluation
    ranked_by = evaluation.ranked_by if evaluation else None
    backgrounds = worst_first(evaluation.backgrounds, ranked_by) if evaluation else []
    return render(
        "run.html",
        run=run,
        album=album,
        notes=[*run.notes, *album.notes],
        last_seen=utc(run.lives.stretches[-1][1]) if run.lives.stretches else "",
        figures=_figures(run),
        summary=summarize(run.settings),
        stages=stage_table(run),
        evaluation=evaluation,
        results=result_tables(evaluation) if evaluation else [],
        backgrounds=part_table(backgrounds[:MAX_BACKGROUNDS], ranked_by),
        backgrounds_shown=_BACKGROUNDS_SHOWN,
        backgrounds_left_out=max(0, len(backgrounds) - MAX_BACKGROUNDS),
        sides=_sides(evaluation, album),
        chart_groups=run_charts(run),
        stage_charts=stage_charts(run),
        has_stages=len({boundary.stage for boundary in run.boundaries}) > 1,
        time_parts=time_parts(run.goodput) if run.goodput else [],
        story=_story(run),
        event_rows=event_rows(run.events),
    )


def _sides(evaluation: Evaluation | None, album: Album) -> list[tuple[str, object, object]]:
    """Return worst and best samples as far as they are known: title, picture or None, table."""
    if evaluation is None:
        return []
    sides = (("Worst", album.worst, evaluation.worst), ("Best", album.best, evaluation.best))
    return [(title, picture, part_table(parts, evaluation.ranked_by)) for title, picture, parts in sides if parts]


def _figures(run: RunData) -> list[_Figure]:
    figures = []
    evaluation = run.latest_evaluation
    if evaluation:
        figures += [figure for figure in (_iou_figure(evaluation), _depth_figure(evaluation)) if figure]
    figures.append(_Figure("Samples seen", f"{run.samples:,}", f"in {count(run.global_step, 'step')}"))
    if run.lives.stretches:
        figures.append(_time_figure(run))
    if (speed := median_speed(run)) is not None:
        wait = median_data_wait(run)
        detail = "samples/s" + ("" if wait is None else f", {percent(wait)} of the time waiting for data; medians")
        figures.append(_Figure("Throughput", f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}", detail))
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
