"""Reads a run folder into one bounded record. Writes nothing and draws nothing."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtrain.report.curve import Curve, Points
from dtrain.report.events import Event, Events, Lives
from dtrain.report.goodput import Goodput, GoodputMeter
from dtrain.report.json_values import numbers, whole
from shard_tools.errors import UserError

_POSITION = {"kind", "stage", "epoch", "step", "global_step", "samples", "size"}


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, on `samples` samples of `split` (None where not known).

    `trivial`: for each predictor that looks at nothing, by its name, its metrics.
    """

    split: str
    metrics: Mapping[str, float]
    samples: int | None = None
    size: int | None = None
    checkpoint: str | None = None
    trivial: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Boundary:
    """Where an epoch begins: after `samples` training samples; `size` is the side of the images in pixels."""

    samples: float
    stage: int
    epoch: int
    size: int | None


@dataclass(frozen=True)
class PanelFile:
    """A panel picture, drawn after `global_step` steps."""

    global_step: int
    path: Path


@dataclass(frozen=True)
class RunData:
    """What a run folder says. Its size is bounded by epochs and lives of the run, not by its steps.

    `training` and `evaluations` are curves over training samples seen; the keys of the latter are
    (split, metric). `speed` is in samples per second, `data_wait` a share in [0, 1]; both likewise.
    `samples`, `global_step`: how far it came. `latest_evaluation` is evaluation.json or, without one, the
    last evaluation of the training itself. `goodput` is None where it is not known. `notes` name what could not be
    read.
    """

    name: str
    state: str
    reason: str
    config: str
    samples: int
    global_step: int
    training: Mapping[str, Points]
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
    notes: Sequence[str]


def read_run(run: Path) -> RunData:
    """Read the folder `run`, of a run that is going on or over; parts that are not there yet are left empty.

    A torn last line of a log is one being written, and is ignored; any other unreadable line is counted in
    `notes`. Raises UserError if there is no such folder or if it has neither config.yaml nor metrics.jsonl.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; expected the folder of a run, as written by `dtrain train`")
    config, metrics_file = run / "config.yaml", run / "metrics.jsonl"
    if not config.is_file() and not metrics_file.is_file():
        raise UserError(
            f"{run}: not a run: it has neither config.yaml nor metrics.jsonl; give the folder that "
            "`dtrain train` writes"
        )
    notes: list[str] = []
    metrics = _read_metrics(metrics_file, notes)
    samples_by_step = metrics.samples_by_step.points().with_ends((0, 0), (metrics.global_step, metrics.samples))
    events = _read_events(run / "events.jsonl", samples_by_step, notes)
    status = _read_object(run / "status.json", notes)
    return RunData(
        name=run.resolve().name,
        state=str(status.get("state", "unknown")),
        reason=str(status.get("reason") or ""),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        samples=metrics.samples,
        global_step=metrics.global_step,
        training={name: curve.points() for name, curve in metrics.training.items()},
        evaluations={key: curve.points() for key, curve in metrics.evaluations.items()},
        speed=events.speed.points(),
        data_wait=events.data_wait.points(),
        boundaries=metrics.boundaries,
        latest_evaluation=_read_evaluation(run / "evaluation.json", notes) or metrics.last_evaluation,
        events=events.rare,
        lives=events.lives,
        goodput=events.meter.goodput(),
        checkpoints=events.checkpoints,
        last_checkpoint_step=events.last_checkpoint_step,
        samples_by_step=samples_by_step,
        panels=_find_panels(run / "panels"),
        notes=notes,
    )


def read_goodput(run: Path) -> Goodput | None:
    """Return where the time of the run in the folder `run` went, from its events.jsonl alone; None where not known."""
    meter = GoodputMeter()
    for line in _lines(run / "events.jsonl"):
        if line is not None:
            meter.take(line)
    return meter.goodput()


class _Metrics:
    """Takes the lines of metrics.jsonl. Steps that a resumed run does again replace what they were before."""

    def __init__(self) -> None:
        self.samples = 0
        self.global_step = 0
        self.training: dict[str, Curve] = {}
        self.evaluations: dict[tuple[str, str], Curve] = {}
        self.boundaries: list[Boundary] = []
        self.last_evaluation: Evaluation | None = None
        self.samples_by_step = Curve()
        self.not_finite: Counter[str] = Counter()

    def take(self, line: Mapping[str, object]) -> bool:
        """Take one line; return whether it was understood."""
        samples, step = whole(line.get("samples")), whole(line.get("global_step"))
        if samples is None or step is None:
            return False
        if line.get("kind") == "train":
            self._take_training(line, samples, step)
            return True
        if line.get("kind") == "skipped":
            self._advance(samples, step)
            return True
        metrics = line.get("metrics")
        if line.get("kind") == "evaluate" and isinstance(metrics, dict):
            self._take_evaluation(str(line.get("split", "")), numbers(metrics), samples)
            if step > self.global_step:
                self._advance(samples, step)
            return True
        return False

    def _take_training(self, line: Mapping[str, object], samples: int, step: int) -> None:
        while self.boundaries and samples <= self.samples and self.boundaries[-1].samples >= samples:
            self.boundaries.pop()
        stage, epoch = (whole(line.get(name)) or 0 for name in ("stage", "epoch"))
        latest = self.boundaries[-1] if self.boundaries else None
        if latest is None or (latest.stage, latest.epoch) != (stage, epoch):
            start = self._epoch_start(line, samples, step) if latest else 0.0
            self.boundaries.append(Boundary(start, stage, epoch, whole(line.get("size"))))
        self._advance(samples, step)
        for name, value in numbers(line).items():
            if name not in _POSITION:
                self.training.setdefault(name, Curve()).add(samples, value)
                self.not_finite[name] += not math.isfinite(value)

    def _advance(self, samples: int, step: int) -> None:
        self.samples, self.global_step = samples, step
        self.samples_by_step.add(step, samples)

    def _epoch_start(self, line: Mapping[str, object], samples: int, global_step: int) -> float:
        """Return the samples seen before the epoch of `line`, its first one: between those of the last line and its."""
        if not (self.samples < samples and self.global_step < global_step):
            return samples
        batch = (samples - self.samples) / (global_step - self.global_step)
        return max(self.samples, samples - batch * (whole(line.get("step")) or 0))

    def _take_evaluation(self, split: str, metrics: Mapping[str, float], samples: int) -> None:
        for name, value in metrics.items():
            self.evaluations.setdefault((split, name), Curve()).add(samples, value)
        self.last_evaluation = Evaluation(split=split, metrics=metrics)


def _read_metrics(path: Path, notes: list[str]) -> _Metrics:
    metrics = _Metrics()
    _note_unreadable(path, sum(line is None or not metrics.take(line) for line in _lines(path)), notes)
    for name, count in metrics.not_finite.items():
        if count:
            notes.append(f"{name} was not a finite number in {count:,} training steps: gaps in its curve")
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


def _read_evaluation(path: Path, notes: list[str]) -> Evaluation | None:
    value = _read_object(path, notes)
    metrics, trivial = value.get("metrics"), value.get("trivial")
    if not isinstance(metrics, dict):
        return None
    return Evaluation(
        split=str(value.get("split", "")),
        metrics=numbers(metrics),
        samples=whole(value.get("samples")),
        size=whole(value.get("size")),
        checkpoint=None if value.get("checkpoint") is None else str(value["checkpoint"]),
        trivial={
            str(name): numbers(figures)
            for name, figures in (trivial.items() if isinstance(trivial, dict) else ())
            if isinstance(figures, dict)
        },
    )


def _find_panels(folder: Path) -> list[PanelFile]:
    """Return the pictures step-NUMBER.png of the folder, by their number."""
    found = [
        PanelFile(int(match[1]), path)
        for path in folder.glob("*.png")
        if (match := re.fullmatch(r"step-(\d+)\.png", path.name))
    ]
    return sorted(found, key=lambda panel: panel.global_step)
