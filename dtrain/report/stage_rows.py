"""What each stage of a run was to be, and what came of it. Pure functions from a run's record to text in rows."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dtrain.report.charts import evaluation_curve, short_title
from dtrain.report.curve import Points
from dtrain.report.results import show_figure
from dtrain.report.run_data import RunData
from dtrain.report.settings import NOTHING, Settings, show, stages
from dtrain.report.words import percent

_PLANNED = {
    "size": "Image size",
    "loss_size": "Loss at",
    "batch": "Batch",
    "epochs": "Epochs",
    "steps": "Steps",
    "seen_samples": "Samples seen",
    "samples": "Out of",
    "learning_rate": "Learning rate",
    "optimizer_state": "Optimizer state",
}
_OF_NO_INTEREST = {"seed_offset": 0, "optimizer_state": "keep"}
_REACHED = ("mask_iou", "depth_mse", "depth_abs_rel")


@dataclass(frozen=True)
class StageTable:
    """A row for each stage under the headings; the first `planned` columns are of the configuration."""

    headings: Sequence[str]
    planned: int
    rows: Sequence[Sequence[str]]


def stage_table(run: RunData) -> StageTable:
    """Return the stages of the configuration with the speed and the last evaluation of each, as far as it came."""
    configured = [
        {key: value for key, value in stage.items() if _OF_NO_INTEREST.get(key) != value}
        for stage in stages(run.settings)
    ]
    found = dict.fromkeys(key for stage in configured for key in stage)
    keys = [*(key for key in _PLANNED if key in found), *(key for key in found if key not in _PLANNED)]
    reached = [metric for metric in _REACHED if evaluation_curve(run, metric)]
    rows = [
        [str(number), *(_planned(key, stage) for key in keys), *_measured(run, number, reached)]
        for number, stage in enumerate(configured)
    ]
    planned = ["Stage", *(_PLANNED.get(key, key.replace("_", " ")) for key in keys)]
    measured = ["Samples/s", "Data wait", *(short_title(metric) for metric in reached)]
    return StageTable([*planned, *measured], len(planned), rows)


def _planned(key: str, stage: Settings) -> str:
    text = show(stage.get(key))
    return f"{text} px" if key in ("size", "loss_size") and key in stage else text


def _measured(run: RunData, stage: int, metrics: Sequence[str]) -> list[str]:
    begins = [boundary.samples for boundary in run.boundaries if boundary.stage == stage]
    if not begins:
        return [NOTHING] * (2 + len(metrics))
    end = min((b.samples for b in run.boundaries if b.stage > stage), default=math.inf)

    def within(points: Points | None) -> list[float]:
        pairs = zip(points.x, points.y, strict=True) if points else ()
        return [y for x, y in pairs if begins[0] < x <= end and math.isfinite(y)]

    speed, wait = within(run.speed), within(run.data_wait)
    last = {metric: values[-1] for metric in metrics if (values := within(evaluation_curve(run, metric)))}
    return [
        f"{statistics.median(speed):,.0f}" if speed else NOTHING,
        percent(statistics.median(wait)) if wait else NOTHING,
        *(show_figure(metric, last) for metric in metrics),
    ]
