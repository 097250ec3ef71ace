"""Reads a run folder into one bounded record. Writes nothing and draws nothing."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.report.curve import Points
from dtrain.report.evaluation import Evaluation, understand_evaluation
from dtrain.report.events import Event, Events, Lives
from dtrain.report.goodput import Goodput, GoodputMeter
from dtrain.report.metrics_log import Boundary, MetricsLog
from dtrain.report.settings import Settings, parse_settings
from shard_tools.errors import UserError


@dataclass(frozen=True)
class PanelFile:
    """A panel picture, drawn after `global_step` steps."""

    global_step: int
    path: Path


@dataclass(frozen=True)
class RunData:
    """What a run folder says. Its size is bounded by epochs and lives of the run, not by its steps.

    `settings` is what `config`, the text, says. `training`, `by_stage` and `evaluations` are curves over training
    samples seen; the keys of the last two are (stage, name) and (split, metric). `speed` is in samples per second,
    `data_wait` a share in [0, 1]; both likewise. `samples`, `global_step`: how far it came. `latest_evaluation` is
    evaluation.json or, without one, the last evaluation of the training itself. `goodput` is None where it is not
    known. `notes` name what could not be read.
    """

    name: str
    state: str
    reason: str
    config: str
    settings: Settings
    samples: int
    global_step: int
    training: Mapping[str, Points]
    by_stage: Mapping[tuple[int, str], Points]
    evaluations: Mapping[tuple[str, str], Points]
    speed: Points
    data_wait: Points
    boundaries: Sequence[Boundary]
    latest_evaluation: Evaluation | None
    events: Sequence[Event]
    lives: Lives
    goodput: Goodput | None
    checkpoints: int
    last_checkpoint_step: int | None
    samples_by_step: Points
    panels: Sequence[PanelFile]
    worst_picture: Path | None
    best_picture: Path | None
    notes: Sequence[str]


def read_run(run: Path) -> RunData:
    """Read the folder `run`, of a run that is going on or over; parts that are not there yet are left empty.

    A torn last line of a log is one being written, and is ignored; any other unreadable line is counted in
    `notes`. Raises UserError if there is no such folder or if it has neither config.yaml nor metrics.jsonl.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; expected the folder of a run, as written by `dtrain train`")
    config_file, metrics_file = run / "config.yaml", run / "metrics.jsonl"
    if not config_file.is_file() and not metrics_file.is_file():
        raise UserError(
            f"{run}: not a run: it has neither config.yaml nor metrics.jsonl; give the folder that "
            "`dtrain train` writes"
        )
    notes: list[str] = []
    config = config_file.read_text(encoding="utf-8", errors="replace") if config_file.is_file() else ""
    metrics = _read_metrics(metrics_file, notes)
    samples_by_step = metrics.samples_by_step.points().with_ends((0, 0), (metrics.global_step, metrics.samples))
    events = _read_events(run / "events.jsonl", samples_by_step, notes)
    status = _read_object(run / "status.json", notes)
    evaluation = understand_evaluation(_read_object(run / "evaluation.json", notes))
    made_of = re.fullmatch(r"step-(\d+)", evaluation.checkpoint or "") if evaluation else None
    if made_of and int(made_of[1]) < (events.last_checkpoint_step or 0):
        notes.append(
            f"evaluation.json is of step {int(made_of[1]):,}, but there are checkpoints up to step "
            f"{events.last_checkpoint_step:,}: `dtrain evaluate` again for figures of the newest"
        )
    return RunData(
        name=run.resolve().name,
        state=str(status.get("state", "unknown")),
        reason=str(status.get("reason") or ""),
        config=config,
        settings=_read_settings(config, notes),
        samples=metrics.samples,
        global_step=metrics.global_step,
        training={name: curve.points() for name, curve in metrics.training.items()},
        by_stage={key: curve.points() for key, curve in metrics.by_stage.items()},
        evaluations={key: curve.points() for key, curve in metrics.evaluations.items()},
        speed=events.speed.points(),
        data_wait=events.data_wait.points(),
        boundaries=metrics.boundaries,
        latest_evaluation=evaluation or metrics.last_evaluation,
        events=events.rare,
        lives=events.lives,
        goodput=events.meter.goodput(),
        checkpoints=events.checkpoints,
        last_checkpoint_step=events.last_checkpoint_step,
        samples_by_step=samples_by_step,
        panels=_find_panels(run / "panels"),
        worst_picture=_if_there(run / "evaluation_worst.png") if evaluation and evaluation.worst else None,
        best_picture=_if_there(run / "evaluation_best.png") if evaluation and evaluation.best else None,
        notes=notes,
    )


def read_goodput(run: Path) -> Goodput | None:
    """Return where the time of the run in the folder `run` went, from its events.jsonl alone; None where not known."""
    meter = GoodputMeter()
    for line in _lines(run / "events.jsonl"):
        if line is not None:
            meter.take(line)
    return meter.goodput()


def _read_metrics(path: Path, notes: list[str]) -> MetricsLog:
    metrics = MetricsLog()
    _note_unreadable(path, sum(line is None or not metrics.take(line) for line in _lines(path)), notes)
    notes += metrics.notes
    return metrics


def _read_events(path: Path, samples_by_step: Points, notes: list[str]) -> Events:
    events = Events(samples_by_step)
    _note_unreadable(path, sum(line is None or not events.take(line) for line in _lines(path)), notes)
    notes += events.notes
    return events


def _note_unreadable(path: Path, count: int, notes: list[str]) -> None:
    if count:
        notes.append(f"{path.name}: {count} unreadable {'line' if count == 1 else 'lines'} left out")


def _lines(path: Path) -> Iterator[dict[str, object] | None]:
    """Yield the objects of a JSON-lines file, None for an unreadable line; a torn last one is not a line yet."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for raw in file:
            value = _parse(raw)
            if value is not None or (raw.strip() and raw.endswith(b"\n")):
                yield value


def _parse(raw: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_object(path: Path, notes: list[str]) -> dict[str, object]:
    if not path.is_file():
        return {}
    value = _parse(path.read_bytes())
    if value is None:
        notes.append(f"{path.name}: not readable as a JSON object, left out")
    return value or {}


def _read_settings(text: str, notes: list[str]) -> Settings:
    settings = parse_settings(text)
    if settings is None:
        notes.append("config.yaml: not readable as a configuration; only its text is shown")
    return settings or {}


def _find_panels(folder: Path) -> list[PanelFile]:
    """Return the pictures step-NUMBER.png of the folder, by their number."""
    found = [
        PanelFile(int(match[1]), path)
        for path in folder.glob("*.png")
        if (match := re.fullmatch(r"step-(\d+)\.png", path.name))
    ]
    return sorted(found, key=lambda panel: panel.global_step)


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
