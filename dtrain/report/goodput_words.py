"""How the parts of a run's time are called, and its goodput in one line. Measures nothing."""

from dataclasses import dataclass

from dtrain.report.goodput import Goodput
from dtrain.report.words import NBSP, duration, percent

_PARTS = (
    ("useful", "Useful steps", "whose result was kept"),
    ("evaluating", "Evaluating", "steps waited for it"),
    ("saving", "Saving", "steps waited for a checkpoint"),
    ("repeated", "Repeated", "lost, because a later session went on from before it"),
    ("starting", "Starting and leaving", "until the first step of a session, and after its last save"),
    ("away", "Away", "between the end of a session and the start of the next"),
)
_SMALLEST_SHARE = 0.0005


@dataclass(frozen=True)
class TimePart:
    """One part of all time: `share` in [0, 1]; the rest is text."""

    key: str
    title: str
    meaning: str
    share: float
    time: str
    percent: str


def time_parts(goodput: Goodput) -> list[TimePart]:
    """Return the parts that took any time, useful steps first."""
    total = goodput.seconds.total
    parts = []
    for key, title, meaning in _PARTS:
        seconds = getattr(goodput.seconds, key)
        if seconds > 0:
            share = seconds / total
            parts.append(TimePart(key, title, meaning, share, duration(seconds), percent(share)))
    return parts


def describe_goodput(goodput: Goodput | None) -> str:
    """Return one line for a terminal: goodput 93.1% of 2 h 14 min; lost: 3.1% starting, 1.8% repeated, 0.4% saving."""
    if goodput is None:
        return "goodput: not known; events.jsonl has no sessions, or some without uptimes"
    line = f"goodput {percent(goodput.share)} of {duration(goodput.seconds.total)}"
    losses = [part for part in time_parts(goodput) if part.key != "useful" and part.share >= _SMALLEST_SHARE]
    if losses:
        losses.sort(key=lambda part: part.share, reverse=True)
        line += "; lost: " + ", ".join(f"{part.percent} {part.key}" for part in losses)
    return line.replace(NBSP, " ")
