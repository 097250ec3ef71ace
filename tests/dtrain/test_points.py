"""The points of curves as metrics.jsonl holds them, also while it is being written."""

import json
from pathlib import Path

from dtrain.points import StepPoints, read_steps


def line(step: int, kind: str = "train", **figures: float) -> bytes:
    """A line of metrics.jsonl."""
    place = {"kind": kind, "stage": 0, "epoch": 0, "step": step, "global_step": step, "samples": 6 * step, "size": 24}
    own = {"split": "test", "test_samples": 10, "metrics": figures} if kind == "evaluate" else figures
    return json.dumps(place | own).encode() + b"\n"


def test_lines_of_a_step_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first, loss, evaluation = line(1, loss=0.5), line(2, loss=0.25), line(2, "evaluate", mask_iou=0.75)
    file.write_bytes(first + loss + evaluation + line(3, loss=0.125))

    assert [*read_steps(file, 0)] == [
        StepPoints(1, {"train/loss": 0.5}, 0, last=False),
        StepPoints(2, {"train/loss": 0.25, "test/mask_iou": 0.75}, len(first), last=False),
        StepPoints(3, {"train/loss": 0.125}, len(first + loss + evaluation), last=True),
    ]


def test_a_line_that_is_being_written_is_not_there_yet(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first, second = line(1, loss=0.5), line(2, loss=0.25)

    for torn in (second[:1], second[:20], second[:-1]):
        file.write_bytes(first + torn)
        assert [*read_steps(file, 0)] == [StepPoints(1, {"train/loss": 0.5}, 0, last=True)]

    file.write_bytes(first + second)
    assert [points.step for points in read_steps(file, 0)] == [1, 2]


def test_it_goes_on_where_a_step_began(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [line(1, loss=0.5), line(2, loss=0.25), line(2, "evaluate", mask_iou=0.75), line(3, loss=0.125)]
    file.write_bytes(b"".join(lines))
    everything = [*read_steps(file, 0)]

    for number, points in enumerate(everything):
        assert [*read_steps(file, points.begin)] == everything[number:]
    assert [*read_steps(file, file.stat().st_size)] == []


def test_a_skipped_step_has_no_figures(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line(1, loss=0.5) + line(2, "skipped", norm=1.0))

    assert [points.figures for points in read_steps(file, 0)] == [{"train/loss": 0.5}, {}]


def test_no_file_has_no_steps(tmp_path: Path) -> None:
    assert [*read_steps(tmp_path / "metrics.jsonl", 0)] == []
