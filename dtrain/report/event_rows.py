"""From events to the rows of the table of events. Pure functions from events to text."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtrain.report.events import Event
from dtrain.report.json_values import finite
from dtrain.report.words import count, duration, times, utc

_TITLES = {
    "start": "Started",
    "resume": "Resumed",
    "preempted": "Preempted",
    "passed_over": "Checkpoint passed over",
    "save_failed": "Checkpoint not written",
    "nonfinite": "Step skipped",
    "done": "Finished",
    "failed": "Failed",
}
_SAME_IN_ALL_SESSIONS = ("start", "data", "total_samples")


@dataclass(frozen=True)
class EventRow:
    """The cells of a row, and the event's name as its `kind`, or "other"."""

    kind: str
    time: str
    title: str
    step: str
    detail: str


def event_rows(events: Sequence[Event]) -> list[EventRow]:
    """Return one row for each event, in their order."""
    rows = []
    previous = ""
    for event in events:
        rows.append(
            EventRow(
                kind=event.name if event.name in _TITLES else "other",
                time=utc(event.time),
                title=_TITLES.get(event.name, event.name),
                step="" if event.global_step is None else f"{event.global_step:,}",
                detail=_detail(event, previous),
            )
        )
        if event.name in ("start", "resume", "preempted", "failed", "done"):
            previous = event.name
    return rows


def _detail(event: Event, previous: str) -> str:
    """Return one line about an event; `previous` is the name of the last one that began or ended a session."""
    details = {key: value for key, value in event.details.items() if key not in _SAME_IN_ALL_SESSIONS}
    parts = []
    if event.name == "resume":
        parts += _resumed(details, previous)
    elif event.name == "preempted" and "signal" in details:
        parts.append(f"by {_signal_name(details.pop('signal'))}")
    elif event.name == "passed_over":
        parts += [str(details.pop(key)) for key in ("checkpoint", "reason") if key in details]
    elif event.name == "save_failed" and "reason" in details:
        parts.append(str(details.pop("reason")))
    elif event.name == "nonfinite":
        parts.append("loss or gradient not finite")
        if isinstance(total := details.pop("count", None), int):
            parts.append(f"{total:,} in the run so far")
    elif event.name == "done" and (seconds := finite(details.pop("seconds", None))) is not None:
        parts.append(f"this session took {duration(seconds)}")
    if event.times > 1:
        parts.append(f"{times(event.times)} in a row")
    if "processes" in details:
        parts.append(_cut(details))
    if (seconds := finite(details.pop("first_step_after", None))) is not None:
        parts.append(f"first step after {duration(seconds)}")
    parts += [f"{key.replace('_', ' ')} {value}" for key, value in details.items()]
    return " · ".join(parts)


def _resumed(details: dict[str, object], previous: str) -> list[str]:
    """Take from `details` where a session went on from, and return it."""
    checkpoint = details.pop("checkpoint", None)
    parts = [f"from {checkpoint}" if checkpoint else "from a checkpoint"]
    if place := [f"{key} {details.pop(key)}" for key in ("stage", "epoch", "step") if key in details]:
        parts.append(", ".join(place))
    if isinstance(written := details.pop("written", None), Mapping):
        parts.append(_written(written))
    if previous in ("start", "resume"):
        parts.append("after an end without notice")
    if repeated := details.pop("repeated_steps", 0):
        parts.append(f"{count(repeated, 'step')} done again" if isinstance(repeated, int) else str(repeated))
    changed = details.pop("changed", None)
    if isinstance(changed, list) and changed:
        parts.append("accepted changes: " + "; ".join(str(line) for line in changed))
    return parts


def _written(written: Mapping[str, object]) -> str:
    """Return under what a checkpoint was written: 2 processes on cuda, host a, torch 2.8, 2025-11-22 08:27:00 UTC."""
    details = dict(written)
    parts = [_cut(details)] if "processes" in details else []
    time = details.pop("time", None)
    parts += [f"{key} {value}" for key, value in details.items()]
    if time is not None:
        seconds = finite(time)
        parts.append(f"{utc(seconds)} UTC" if seconds is not None else str(time))
    return "written by " + ", ".join(parts)


def _cut(details: dict[str, object]) -> str:
    """Take from `details` how the global batch was cut, and return it: 2 processes × 2 × micro-batch 16 on cuda."""
    processes = details.pop("processes")
    text = count(processes, "process") if isinstance(processes, int) else f"{processes} processes"
    accumulation = details.pop("accumulation", 1)
    if accumulation != 1:
        text += f" × {accumulation} accumulated"
    if "micro_batch" in details:
        text += f" × micro-batch {details.pop('micro_batch')}"
    if "device" in details:
        text += f" on {details.pop('device')}"
    return text


def _signal_name(number: object) -> str:
    if isinstance(number, int):
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    return str(number)
