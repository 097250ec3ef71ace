"""From the records of several runs to the text of one page. Pure apart from the templates beside it."""

from collections.abc import Sequence

from markupsafe import Markup

from dtrain.report.album import Album
from dtrain.report.chart import line_key
from dtrain.report.charts import comparison_charts
from dtrain.report.comparison import common_ground, effort_table, metric_tables, notes_of, warnings
from dtrain.report.goodput_words import time_parts
from dtrain.report.run_data import RunData
from dtrain.report.settings import describe_loss, differences
from dtrain.report.templates import render

_RUNS_ACROSS = 4
"""Up to so many runs are columns of the tables of metrics; more of them are rows."""


def render_comparison(runs: Sequence[RunData], album: Album) -> str:
    """Return the whole HTML page of runs with names of their own; all that comes from them is escaped."""
    parts = [(run, time_parts(run.goodput)) for run in runs if run.goodput]
    return render(
        "comparison.html",
        runs=runs,
        album=album,
        notes=[*notes_of(runs), *album.notes],
        warnings=warnings(runs),
        common_ground=common_ground(runs),
        runs_across=len(runs) <= _RUNS_ACROSS,
        keys={run.name: Markup(line_key(index)) for index, run in enumerate(runs)},
        losses=[describe_loss(run.settings) for run in runs],
        differences=differences([run.settings for run in runs]),
        metric_tables=metric_tables(runs),
        effort=effort_table(runs),
        time_parts=parts,
        all_parts={part.key: part for _, of_run in parts for part in of_run}.values(),
        chart_groups=comparison_charts(runs, legend=False),
    )
