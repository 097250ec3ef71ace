"""The statistics of all splits as one picture. Draws into memory; never reads or writes files."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from shard_tools.stats import COVERAGE_BINS, LEVELS, SplitSums

WIDTH, HEIGHT = 1500, 1050
"""Size of the picture in pixels."""

_DPI = 150
_INK, _HAIRLINE = "#22252a", "#d6d9de"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, which the colour-blind can tell apart."""
_STYLES = ("-", "--", ":", "-.")

_DEPTH_BINS = 32
_MIN_DEPTH_SHARE = 1e-4
_STEP = 0.3
"""Between the marks of two splits that stand side by side, in units of the distance between components."""


def draw_stats(title: str, splits: Mapping[str, SplitSums]) -> bytes:
    """A PNG of WIDTH × HEIGHT pixels: depth, mask coverage, channels and bytes, the splits in the same axes.

    Each split has one tuple at least. Histograms show shares, so that splits of unequal size can be compared.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for draw, ax in zip((_draw_depth, _draw_coverage, _draw_channels, _draw_bytes), axes.flat, strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color=_HAIRLINE, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9, color=_INK)
        draw(ax, splits)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        title=title,
        title_fontsize=14,
        alignment="left",
        loc="outside upper left",
        ncols=4,
        frameon=False,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_depth(ax: Axes, splits: Mapping[str, SplitSums]) -> None:
    edges = np.linspace(0, 1, _DEPTH_BINS + 1)
    for number, (name, sums) in enumerate(splits.items()):
        histogram = sums.components["depth"].levels.reshape(_DEPTH_BINS, LEVELS // _DEPTH_BINS).sum(axis=1)
        _draw_histogram(ax, histogram, edges, number, f"{name}: {sums.tuples:,} tuples")
    ax.set_title("Depth", loc="left")
    ax.set(xlabel="depth, 0 to 1", ylabel="share of pixels (log)", yscale="log", xlim=(0, 1.01))
    ax.set_ylim(_MIN_DEPTH_SHARE, 1)
    ax.yaxis.set_major_formatter(_percent)


def _draw_coverage(ax: Axes, splits: Mapping[str, SplitSums]) -> None:
    edges = np.linspace(0, 1, COVERAGE_BINS + 1)
    for number, (name, sums) in enumerate(splits.items()):
        _draw_histogram(ax, sums.coverage.histogram, edges, number, name)
    last = max(int(np.flatnonzero(sums.coverage.histogram)[-1]) for sums in splits.values())
    ax.set_title("Mask coverage", loc="left")
    ax.set(xlabel="share of the image that is under the mask", ylabel="share of tuples")
    ax.set_xlim(0, edges[last + 1] * 1.03)
    ax.set_ylim(bottom=0)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        axis.set_major_formatter(_percent)


def _draw_histogram(
    ax: Axes, histogram: NDArray[np.int64], edges: NDArray[np.float64], number: int, label: str
) -> None:
    ax.stairs(
        histogram / histogram.sum(),
        edges,
        color=_COLOURS[number % len(_COLOURS)],
        linestyle=_STYLES[number % len(_STYLES)],
        linewidth=1.5,
        label=label,
    )


def _draw_channels(ax: Axes, splits: Mapping[str, SplitSums]) -> None:
    places = np.array([0, 1, 2, 3.5, 4.5, 5.5])
    for number, sums in enumerate(splits.values()):
        parts = [sums.components[name] for name in ("bg", "fgbg")]
        ax.errorbar(
            places + _aside(number, len(splits)),
            [value for part in parts for value in part.mean],
            yerr=[value for part in parts for value in part.std],
            fmt="o",
            markersize=5,
            capsize=3,
            linewidth=1.5,
            color=_COLOURS[number % len(_COLOURS)],
        )
    ax.set_title("Colour channels", loc="left")
    ax.set_ylabel("mean ± deviation, 0 to 1")
    ax.set_ylim(0, 1)
    ax.set_xticks(places, ["R", "G\nbg", "B", "R", "G\nfgbg", "B"])


def _draw_bytes(ax: Axes, splits: Mapping[str, SplitSums]) -> None:
    for number, sums in enumerate(splits.values()):
        parts = sums.components.values()
        low, mean, high = np.array([(part.bytes_min, part.bytes_mean, part.bytes_max) for part in parts]).T / 1000
        ax.bar(
            np.arange(len(parts)) + _aside(number, len(splits)),
            mean,
            width=0.85 * _step(len(splits)),
            yerr=(mean - low, high - mean),
            capsize=3,
            color=_COLOURS[number % len(_COLOURS)],
            ecolor=_INK,
        )
        ax.set_xticks(range(len(parts)), sums.components)
    ax.set_title("Bytes per image", loc="left")
    ax.set_ylabel("kB: mean, min to max")


def _aside(number: int, count: int) -> float:
    """How far from its place the mark of one of `count` splits stands, so that they stand side by side."""
    return _step(count) * (number - (count - 1) / 2)


def _step(count: int) -> float:
    return min(_STEP, 0.8 / count)


@FuncFormatter
def _percent(value: float, _: int | None = None) -> str:
    return f"{100 * value:g}%"
