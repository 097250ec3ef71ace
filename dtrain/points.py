"""The points of the curves, as metrics.jsonl holds them. Reads; never writes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = ("kind", "stage", "epoch", "step", "global_step", "samples", "size")
"""Keys of a line of metrics.jsonl that say where it belongs; the others of a training step's are its figures."""


@dataclass(frozen=True)
class StepPoints:
    """All points of one step."""

    step: int
    """The global step."""
    figures: dict[str, float]
    """By the name of the curve, such as "train/loss"."""
    begin: int
    """Of its first line in the file, in bytes."""
    last: bool
    """Whether the file holds no later step yet, so that more points may come for this one."""


def points_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The points that a line of metrics.jsonl stands for, by the name of the curve; a skipped step has none."""
    if line["kind"] == "train":
        return {f"train/{name}": value for name, value in line.items() if name not in PLACE}
    if line["kind"] == "evaluate":
        return {f"test/{name}": value for name, value in line["metrics"].items()}
    return {}


def read_steps(metrics: Path, begin: int) -> Iterator[StepPoints]:
    """The points of each step from byte `begin` on, where a line begins, in order; nothing if there is no file."""
    try:
        file = metrics.open("rb")
    except FileNotFoundError:
        return
    step, figures = None, dict[str, float]()
    with file:
        file.seek(begin)
        here = begin
        for text in file:
            if not text.endswith(b"\n"):  # being written
                break
            line = json.loads(text)
            if step is not None and line["global_step"] != step:
                yield StepPoints(step, figures, begin, last=False)
                begin, figures = here, {}
            step = line["global_step"]
            figures |= points_of(line)
            here += len(text)
    if step is not None:
        yield StepPoints(step, figures, begin, last=True)
