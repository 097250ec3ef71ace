"""An evaluation as plain text, at most 100 columns wide. Never computes a figure."""

from collections.abc import Mapping, Sequence

from dtrain.breakdown import Part
from dtrain.constant_predictors import LEVELS
from dtrain.extremes import Ranked
from dtrain.figures import Figures
from dtrain.metric_names import metric_name
from dtrain.original_metrics import Logged

_LABEL, _COLUMN = 28, 16
_FEW = ("mask_iou", "mask_f1", "depth_rmse", "depth_abs_rel", "depth_delta1")
_OF_ORIGINAL = {
    "RMSE": "depth_rmse",
    **{f"δ{power}": f"depth_delta{power}" for power in (1, 2, 3)},
    "log10": "depth_log10",
    "SSIM-D": "depth_ssim",
}
_GROUPS = {"depth": ("mean depth", "best constant"), "mask": ("all background", "all object", "best constant")}


def figures_table(figures: Figures, trivial: Mapping[str, Figures]) -> str:
    """Figures of depth, of the mask, and of the data, one a line, beside the trivial predictors of each.

    What a trivial predictor's figure is not known of is shown as a dash. The last line says what "best constant" is.
    """
    lines = []
    for group, names in _GROUPS.items():
        columns = {"this model": figures} | {name: trivial[name] for name in names}
        lines.append(_row(group, list(columns)))
        lines += [
            _row(f"  {_label(key)}", [_cell(key, column) for column in columns.values()])
            for key in figures
            if key.startswith(group) and metric_name(key).better
        ]
        lines.append("")
    lines.append("the data")
    lines += [
        _row(f"  {metric_name(key).title}", [_cell(key, figures)]) for key in figures if not metric_name(key).better
    ]
    lines += [
        "",
        f"best constant: of {LEVELS} levels the best for each figure; of all for MSE and the mask",
    ]
    return "\n".join(lines)


def backgrounds_table(parts: Mapping[str, Part], metric: str) -> str:
    """One line a background, in the given order: its samples, and a few figures, `metric` among them."""
    counts = [f"{part.samples:,}" for part in parts.values()]
    return _table("background", list(parts), {"samples": counts}, [part.figures for part in parts.values()], metric)


def samples_table(title: str, samples: Sequence[Ranked], metric: str) -> str:
    """One line a sample, in the given order, with a few figures, `metric` among them."""
    return _table(title, [ranked.key for ranked in samples], {}, [ranked.figures for ranked in samples], metric)


def original_table(logged: Mapping[str, Logged], figures: Figures) -> str:
    """What the original's log would show over an epoch, beside what is right."""
    lines = [_row("as the original logged it", ["first batch", "mean of epoch", "last batch", "right"])]
    for name, values in logged.items():
        right = figures.get(_OF_ORIGINAL[name])
        if right is not None and name == "SSIM-D":
            right = 1 - right
        label = f"  1 − {name}" if name == "SSIM-D" else f"  {name}"
        numbers = (values.first, values.mean, values.last, right)
        lines.append(_row(label, ["–" if number is None else f"{number:.5f}" for number in numbers]))
    return "\n".join(lines)


def _table(
    title: str, names: Sequence[str], first: Mapping[str, Sequence[str]], rows: Sequence[Figures], metric: str
) -> str:
    shown = list(dict.fromkeys([metric, *_FEW]))
    columns = {**first, **{metric_name(key).title: [_cell(key, row) for row in rows] for key in shown}}
    left = max(map(len, [title, *names]))
    lines = [f"{title:<{left}}" + "".join(f"  {heading}" for heading in columns)]
    for number, name in enumerate(names):
        cells = "".join(f"  {cells[number]:>{len(heading)}}" for heading, cells in columns.items())
        lines.append(f"{name:<{left}}{cells}")
    return "\n".join(lines)


def _label(key: str) -> str:
    """A figure's title within its group, and the write-up's name for it."""
    name = metric_name(key)
    title = name.title.partition(" ")[2]
    return f"{title} ({name.write_up})" if name.write_up not in ("", title) else title


def _cell(key: str, figures: Figures) -> str:
    return metric_name(key).show(figures[key]) if key in figures else "–"


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:<{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)
