"""Line charts as SVG text. Pure functions from series to string; knows nothing of runs or files."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from dtrain.report.curve import Points

WIDTH, HEIGHT = 420, 268
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 42, 44
_LEGEND_LINE = 19
_LETTER = 6.9  # width of an average letter at the font size below
_FONT = "font:12.5px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-variant-numeric:tabular-nums"
_SERIES_COLOURS = ("#1b63b5", "#b84a00", "#22785a", "#8a3fa8", "#7a6200", "#a8325e")
_DASHES = ("", "7 4", "2 3")
_DOTS_UP_TO = 40

MarkKind = Literal["stage", "epoch", "resume"]


@dataclass(frozen=True)
class Series:
    """A named line. Values that are not finite are gaps in it; the range low to high is shaded around it."""

    name: str
    points: Points


@dataclass(frozen=True)
class Mark:
    """A vertical line at x: the start of a stage or of an epoch, or a place where the run was resumed.

    `label` stands above it where there is room; `title` is shown on hovering.
    """

    x: float
    kind: MarkKind
    label: str = ""
    title: str = ""


@dataclass(frozen=True)
class _Axis:
    """One axis: values from `low` to `high` on pixels `start` to `end`, straight or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, self.low)), math.log10(low), math.log10(high)
        share = (value - low) / (high - low)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_end: float | None = None,
    marks: Sequence[Mark] = (),
    y_limits: tuple[float, float] | None = None,
    log: bool = False,
    legend: bool = True,
) -> str:
    """Return one `<svg>` element that needs nothing else: axes, ticks, labels, a `legend` if lines are several.

    Colours are the CSS variables --chart-ink, --chart-rule, --chart-resume and --chart-1 … --chart-6 of the page
    around it, with defaults for a white ground. `log` takes a logarithmic y axis if there are positive
    values, and leaves the others as gaps. `y_limits` is the least range to show, `x_end` the least end of
    the x axis, which starts at 0. Every text is escaped.
    """
    log = log and any(y > 0 for line in series for y in line.points.y if math.isfinite(y))
    legend_rows = _legend_rows([line.name for line in series]) if legend and len(series) > 1 else []
    height = HEIGHT + _LEGEND_LINE * len(legend_rows)
    x_axis = _x_axis(series, x_end)
    y_axis = _y_axis(series, y_limits, log)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label={quoteattr(title)} style="{_FONT}">',
        f"<title>{escape(title)}</title>",
        *_grid(x_axis, y_axis),
        _text(0, 12, y_label + (", log scale" if log else ""), "start"),
        _text(WIDTH - _RIGHT, HEIGHT - 6, x_label, "end"),
        *_marks(marks, x_axis),
    ]
    for index, line in enumerate(series):
        parts += _line(line, index, x_axis, y_axis, log)
    for row, names in enumerate(legend_rows):
        parts += _legend_row(names, HEIGHT + row * _LEGEND_LINE + 10)
    parts.append("</svg>")
    return "".join(parts)


def line_key(index: int) -> str:
    """Return a small `<svg>` element that shows how the line number `index` of a chart is drawn; for a legend."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 8" width="20" height="8" aria-hidden="true">'
        f'<path d="M0 4h20" style="stroke-width:3;{_stroke(index)}"/></svg>'
    )


def compact(value: float) -> str:
    """Return a number as short as a tick label is: 0.002, 5e-5, 12.5k, 3M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}".replace("e-0", "e-")


def linear_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return about `count` round numbers (steps of 1, 2 or 5 × 10ⁿ) that enclose low < high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round numbers that enclose 0 < low <= high: 1, 2, 5 × 10ⁿ over few decades, powers of ten over many."""
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if top - bottom > 3:
        every = -(-(top - bottom) // 6)
        return tuple(10.0**power for power in range(bottom, top + every, every))
    grid = [float(f"{factor}e{power}") for power in range(bottom, top + 1) for factor in (1, 2, 5)]
    first = max((tick for tick in grid if tick <= low), default=grid[0])
    last = min((tick for tick in grid if tick >= high and tick > first), default=grid[-1])
    return tuple(tick for tick in grid if first <= tick <= last)


def _x_axis(series: Sequence[Series], end: float | None) -> _Axis:
    high = max((end or 0.0, *(x for line in series for x in line.points.x))) or 1.0
    ticks = tuple(tick for tick in linear_ticks(0.0, high, 5) if tick <= high)
    return _Axis(0.0, high, _LEFT, WIDTH - _RIGHT, ticks)


def _y_axis(series: Sequence[Series], limits: tuple[float, float] | None, log: bool) -> _Axis:
    values = [
        value
        for line in series
        for points in (line.points.y, line.points.low, line.points.high)
        for value in (*points, *(limits or ()))
        if math.isfinite(value) and (value > 0 or not log)
    ] or [0.0, 1.0]
    low, high = min(values), max(values)
    if not log and high - low <= 1e-9 * max(abs(low), abs(high)):  # nothing that ticks could tell apart
        low, high = min(0.0, 2 * low), max(0.0, 2 * high) or 1.0
    ticks = log_ticks(low, high) if log else linear_ticks(low, high, 5)
    return _Axis(ticks[0], ticks[-1], HEIGHT - _BOTTOM, _TOP, ticks, log)


def _colour(index: int) -> str:
    number = index % len(_SERIES_COLOURS)
    return f"var(--chart-{number + 1},{_SERIES_COLOURS[number]})"


def _stroke(index: int) -> str:
    """Return the style of a line: after all the colours come the same ones dashed."""
    dash = _DASHES[index // len(_SERIES_COLOURS) % len(_DASHES)]
    return f"stroke:{_colour(index)}" + (f";stroke-dasharray:{dash}" if dash else "")


def _text(x: float, y: float, text: str, anchor: Literal["start", "middle", "end"]) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" style="fill:var(--chart-ink,#555c66)">{escape(text)}</text>'
    )


def _grid(x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    rule = 'style="stroke:var(--chart-rule,#e3e5e9)"'
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for tick in y_axis.ticks:
        y = y_axis(tick)
        yield f'<path d="M{_LEFT} {y}H{right}" {rule}/>'
        yield _text(_LEFT - 6, y + 4, compact(tick), "end")
    for tick in x_axis.ticks:
        x = x_axis(tick)
        yield f'<path d="M{x} {bottom}v4" {rule}/>'
        yield _text(x, bottom + 16, compact(tick), "middle")


def _marks(marks: Sequence[Mark], x_axis: _Axis) -> Iterator[str]:
    """Draw the vertical lines; a label only where it ends before the next one of its kind and the border."""
    bottom = HEIGHT - _BOTTOM
    styles: dict[MarkKind, str] = {
        "epoch": "stroke:var(--chart-rule,#e3e5e9)",
        "stage": "stroke:var(--chart-ink,#555c66)",
        "resume": "stroke:var(--chart-resume,#b3261e);stroke-dasharray:3 3",
    }
    free_from = 0.0
    labelled = [mark for mark in marks if mark.label]
    for mark in marks:
        x = x_axis(mark.x)
        yield f'<g data-mark="{mark.kind}"><title>{escape(mark.title or mark.label)}</title>'
        yield f'<path d="M{x} {_TOP}V{bottom}" style="fill:none;{styles[mark.kind]}"/>'
        if mark.kind == "resume":
            yield f'<path d="M{x} {_TOP}l-3.5 -6h7z" style="fill:var(--chart-resume,#b3261e)"/>'
        yield "</g>"
    for mark in labelled:
        x = x_axis(mark.x) + 3
        end = x + _LETTER * len(mark.label)
        if x >= free_from and end <= WIDTH:
            free_from = end + 8
            yield _text(x, _TOP - 11, mark.label, "start")


def _line(line: Series, index: int, x_axis: _Axis, y_axis: _Axis, log: bool) -> Iterator[str]:
    colour = _colour(index)
    runs = list(_drawable_runs(line.points, log))
    for run in runs:
        upper = [f"{x_axis(line.points.x[i])} {y_axis(line.points.high[i])}" for i in run]
        lower = [f"{x_axis(line.points.x[i])} {y_axis(line.points.low[i])}" for i in reversed(run)]
        if any(line.points.high[i] > line.points.low[i] for i in run):
            yield f'<path d="M{"L".join(upper + lower)}z" style="fill:{colour};opacity:.18"/>'
    for run in runs:
        centre = [f"{x_axis(line.points.x[i])} {y_axis(line.points.y[i])}" for i in run]
        if len(run) > 1:
            yield (
                f'<path d="M{"L".join(centre)}" style="fill:none;stroke-width:1.6;{_stroke(index)};'
                'stroke-linejoin:round;stroke-linecap:round"/>'
            )
        for i in run if len(line.points.x) <= _DOTS_UP_TO or len(run) == 1 else ():
            x, y = line.points.x[i], line.points.y[i]
            yield (
                f'<circle cx="{x_axis(x)}" cy="{y_axis(y)}" r="2.6" style="fill:{colour}">'
                f"<title>{escape(line.name)}: {compact(y)} at {compact(x)}</title></circle>"
            )


def _drawable_runs(points: Points, log: bool) -> Iterator[range]:
    """Yield the index ranges of neighbours that can be drawn: finite, and positive on a logarithmic axis."""
    start = 0
    for index, y in enumerate((*points.y, math.nan)):
        if not math.isfinite(y) or (log and y <= 0):
            if index > start:
                yield range(start, index)
            start = index + 1


def _legend_rows(names: Sequence[str]) -> list[list[tuple[int, str, float]]]:
    """Return per row of the legend the (index, name, x) of its entries, in the order given."""
    rows: list[list[tuple[int, str, float]]] = [[]]
    x = float(_LEFT)
    for index, name in enumerate(names):
        width = 22 + _LETTER * len(name) + 14
        if rows[-1] and x + width > WIDTH:
            rows.append([])
            x = float(_LEFT)
        rows[-1].append((index, name, x))
        x += width
    return rows


def _legend_row(entries: Sequence[tuple[int, str, float]], y: float) -> Iterator[str]:
    for index, name, x in entries:
        yield f'<path d="M{x:g} {y - 4:g}h16" style="stroke-width:2.4;{_stroke(index)}"/>'
        yield _text(x + 22, y, name, "start")
