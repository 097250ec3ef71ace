"""What every layout of a source tree is reduced to: a sequence of tuples. Lists names; never opens an image."""

from collections.abc import Sequence
from dataclasses import dataclass

from shard_tools.checks import Problem

COMPONENTS = ("bg", "fgbg", "depth", "mask")
"""The images of a tuple, in the order in which a shard holds them."""


@dataclass(frozen=True, slots=True)
class SourceTuple:
    """One training example: its key, one file per component (relative to the source), and KEY.json as text."""

    key: str
    files: tuple[str, ...]
    metadata: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a scan of a source tree found.

    `tuples` holds the complete ones in the order of the layout's index; `per_background` says how many of them each
    background has, in the same order. `extensions` gives one per component. `found` counts incomplete tuples too;
    `problems` say what those lack; `notes` are files that were seen and are not used.
    """

    layout: str
    tuples: Sequence[SourceTuple]
    per_background: tuple[int, ...]
    extensions: tuple[str, ...]
    found: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
