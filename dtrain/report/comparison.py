"""Several runs beside each other, as tables: metrics with the best marked, time and speed; also as Markdown.

Pure functions from records of runs to text in rows, but for `read_runs`.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtrain.metric_names import metric_name
from dtrain.report.charts import short_title
from dtrain.report.results import by_task, show_figure
from dtrain.report.run_data import RunData, read_run
from dtrain.report.settings import NOTHING, differences, show, stages
from dtrain.report.words import NBSP, duration, percent
from shard_tools.errors import UserError

_ARROWS = {"lower": "↓", "higher": "↑", None: ""}


@dataclass(frozen=True)
class Cell:
    """A figure as text; `best`: no other run has a better one, and some have worse ones."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """The figures of a run or, if it is `trivial`, of a predictor that looks at nothing."""

    name: str
    cells: Sequence[Cell]
    trivial: bool = False


@dataclass(frozen=True)
class Table:
    """A row for each run, first those of the runs in their order; `title` is the task or the subject."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read run folders; names that are the same get as much of their paths as tells them apart.

    Raises UserError for a folder that is no run, and for one that is given twice.
    """
    folders = [path.resolve() for path in paths]
    for folder, path in zip(folders, paths, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"{path}: given twice; expected different runs")
    return [replace(read_run(path), name=name) for path, name in zip(paths, unique_names(folders), strict=True)]


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Return for each of different absolute paths the shortest end of it, in whole parts, that no other has."""

    def end(folder: Path, parts: int) -> str:
        return "/".join(folder.parts[-parts:])

    names = []
    for folder in folders:
        lengths = range(1, len(folder.parts) + 1)
        alone = (n for n in lengths if sum(end(other, n) == end(folder, n) for other in folders) == 1)
        names.append(end(folder, next(alone, len(folder.parts))))
    return names


def metric_tables(runs: Sequence[RunData], metrics: Sequence[str] | None = None) -> list[Table]:
    """Return a table for each task: the last figures of each run, then of the trivial predictors.

    `metrics`: which, and in which order; all that any run has, if None. A run without an evaluation has dashes.
    """
    evaluations = [run.latest_evaluation for run in runs]
    found = dict.fromkeys(key for evaluation in evaluations if evaluation for key in evaluation.metrics)
    wanted = found if metrics is None else [key for key in metrics if key in found]
    tables = []
    for task, keys in by_task(wanted).items():
        rows = [Row(run.name, _cells(run, runs, keys)) for run in runs]
        tables.append(Table(task, [column_title(key) for key in keys], [*rows, *_trivial_rows(runs, keys)]))
    return tables


def effort_table(runs: Sequence[RunData]) -> Table:
    """Return how far each run came, and in what time; time running leaves out time away. Medians over the run."""
    columns = ("State", "Steps", "Samples", "Time running", "Sessions", "Goodput", "Samples/s", "Data wait")
    return Table("Time and throughput", columns, [Row(run.name, [Cell(text) for text in _effort(run)]) for run in runs])


def evaluated_on(run: RunData) -> str:
    """Return what the last figures of a run are over: test, 640 samples, judged at 64 px."""
    evaluation = run.latest_evaluation
    if evaluation is None:
        return "never evaluated"
    parts = [evaluation.split]
    if evaluation.samples is not None:
        parts.append(f"{evaluation.samples:,} samples")
    if evaluation.size is not None:
        parts.append(f"judged at {evaluation.size} px")
    return ", ".join(parts)


def common_ground(runs: Sequence[RunData]) -> str:
    """Return what all figures are over, and at what sizes the networks were trained last; empty if they differ."""
    places = {evaluated_on(run) for run in runs if run.latest_evaluation}
    if len(places) != 1 or not all(run.latest_evaluation for run in runs):
        return ""
    by_size: dict[str, list[str]] = {}
    for run in runs:
        if (of_run := stages(run.settings)) and "size" in of_run[-1]:
            by_size.setdefault(show(of_run[-1]["size"]), []).append(run.name)
    sizes = "; ".join(f"{size} px: {', '.join(names)}" for size, names in by_size.items())
    told = f" Networks were trained last at {sizes}." if len(by_size) > 1 else ""
    return f"Of {places.pop()}.{told}"


def warnings(runs: Sequence[RunData]) -> list[str]:
    """Return what a reader of the figures must know to compare them fairly."""
    places: dict[str, list[str]] = {}
    for run in runs:
        places.setdefault(evaluated_on(run), []).append(run.name)
    found = []
    if len(places) > 1:
        each = "; ".join(f"{', '.join(names)}: {place}" for place, names in places.items())
        found.append(f"Not all figures are of the same samples, judged at the same size. {each}.")
    if unfinished := [f"{run.name} ({run.state})" for run in runs if run.state != "done"]:
        found.append(f"Not finished: {', '.join(unfinished)}.")
    return found


def notes_of(runs: Sequence[RunData]) -> list[str]:
    """Return what a reader of each run's figures must know, by the run's name."""
    return [f"{run.name}: {note}" for run in runs for note in run.notes]


def comparison_markdown(runs: Sequence[RunData], metrics: Sequence[str] | None = None) -> str:
    """Return warnings, differing settings, metrics and effort as Markdown, headings of the third level."""
    parts = [f"> {_escape(warning)}" for warning in (*warnings(runs), *notes_of(runs))]
    parts += [_escape(ground)] if (ground := common_ground(runs)) else []
    rows = differences([run.settings for run in runs])
    if rows:
        table = Table("Settings that differ", [run.name for run in runs], [])
        cells = [Row(row.key, [Cell(value) for value in row.values]) for row in rows]
        parts.append(table_markdown(replace(table, rows=cells), corner="Key"))
    parts += [table_markdown(table) for table in (*metric_tables(runs, metrics), effort_table(runs))]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table, corner: str = "Run") -> str:
    """Return a table under its title; the best figures are bold, trivial predictors in italics."""
    lines = [
        f"### {_escape(table.title)}",
        "",
        _line([corner, *(_escape(column) for column in table.columns)]),
        _line(["---", *("---:" for _ in table.columns)]),
    ]
    for row in table.rows:
        name = _escape(row.name)
        cells = [f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text) for cell in row.cells]
        lines.append(_line([f"*{name}*" if row.trivial else name, *cells]))
    return "\n".join(lines)


def column_title(metric: str) -> str:
    """Return the heading of a column: the metric without its task, and an arrow to its better end."""
    return f"{short_title(metric)}{NBSP}{_ARROWS[metric_name(metric).better]}".rstrip()


def median_speed(run: RunData) -> float | None:
    """Return the median throughput in samples per second; None if it was never measured."""
    return _median(run.speed.y)


def median_data_wait(run: RunData) -> float | None:
    """Return the median share of time, in [0, 1], that steps waited for data; None if it was never measured."""
    return _median(run.data_wait.y)


def _cells(run: RunData, runs: Sequence[RunData], metrics: Sequence[str]) -> list[Cell]:
    mine = run.latest_evaluation.metrics if run.latest_evaluation else {}
    return [Cell(show_figure(key, mine), key in mine and mine[key] == _best(runs, key)) for key in metrics]


def _best(runs: Sequence[RunData], metric: str) -> float | None:
    """Return the best of different figures; None if there is only one, or if it is not known which end is better."""
    better = metric_name(metric).better
    evaluations = [run.latest_evaluation for run in runs]
    values = [evaluation.metrics[metric] for evaluation in evaluations if evaluation and metric in evaluation.metrics]
    finite = [value for value in values if math.isfinite(value)]
    if better is None or not finite or len(set(values)) < 2:
        return None
    return min(finite) if better == "lower" else max(finite)


def _trivial_rows(runs: Sequence[RunData], metrics: Sequence[str]) -> list[Row]:
    """Return a row for each trivial predictor; more where runs were judged on different samples, by the run's name."""
    found: dict[str, dict[tuple[str, ...], str]] = {}
    for run in runs:
        for name, figures in run.latest_evaluation.trivial.items() if run.latest_evaluation else ():
            if not figures.keys().isdisjoint(metrics):
                texts = tuple(show_figure(key, figures) for key in metrics)
                found.setdefault(name, {}).setdefault(texts, run.name)
    return [
        Row(name if len(rows) == 1 else f"{name} ({run_name})", [Cell(text) for text in texts], trivial=True)
        for name, rows in found.items()
        for texts, run_name in rows.items()
    ]


def _effort(run: RunData) -> list[str]:
    seconds, sessions = run.lives.seconds, len(run.lives.stretches)
    if run.goodput:
        seconds, sessions = run.goodput.seconds.total - run.goodput.seconds.away, run.goodput.sessions
    speed, wait = median_speed(run), median_data_wait(run)
    return [
        run.state,
        f"{run.global_step:,}",
        f"{run.samples:,}",
        duration(seconds) if sessions else NOTHING,
        f"{sessions:,}" if sessions else NOTHING,
        percent(run.goodput.share) if run.goodput else NOTHING,
        NOTHING if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}",
        NOTHING if wait is None else percent(wait),
    ]


def _median(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Return the text so that Markdown shows it as it is, in one line."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&~$" else letter for letter in plain)
