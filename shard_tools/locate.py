"""Which tuple an index means, by the rule of a full grid. Looks for names of files; never opens an image."""

from pathlib import Path

import numpy as np

from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError
from shard_tools.layouts import Findings, Groups
from shard_tools.layouts.choose import find_tuples


def rule(index: int, *, foregrounds: int, placements: int) -> tuple[int, int, int]:
    """Background, foreground and placement of tuple `index`; all of them count from 1.

    Tuples are those of a full grid, ordered by background, foreground and placement. With 100 foregrounds and 40
    placements: background ⌈index / 4000⌉, foreground ⌈index / 40⌉ mod 100 and placement index mod 40, where a
    remainder of 0 stands for 100 and for 40. Raises ValueError for an index, or a count, below 1.
    """
    if min(index, foregrounds, placements) < 1:
        raise ValueError(f"index {index}, {foregrounds} foregrounds, {placements} placements: each is at least 1")
    pair, placement = divmod(index - 1, placements)
    background, foreground = divmod(pair, foregrounds)
    return background + 1, foreground + 1, placement + 1


def locate(source: Path, index: int, *, layout: str | None) -> str:
    """Say which tuple of `source` has the `index`, from 1, and where its files are.

    Where the source is no full grid, it is the tuple at that place among the complete ones. Raises UserError for
    a source without complete tuples, and for an index beyond them.
    """
    findings, reason = find_tuples(source, layout)
    count = len(findings.tuples)
    if not count:
        first = findings.problems[0]
        raise UserError(f"{source}: none of its {findings.found:,} tuples is complete; {first.file} is {first.text}")
    if not 1 <= index <= count:
        raise UserError(f"INDEX {index}: {source} has {count:,} tuples; expected 1 to {count}")
    item = findings.tuples[index - 1]
    lines = [
        f"index {index:,} of {count:,}, layout {findings.layout}" + (f": {reason}" if reason else ""),
        _by_rule(findings, index),
        f"key    {item.key}",
        *(f"{name:<6} {findings.root / file}" for name, file in zip(COMPONENTS, item.files, strict=True)),
    ]
    return "\n".join(lines)


def _by_rule(findings: Findings, index: int) -> str:
    """What the rule says of the index, or that it does not hold."""
    backgrounds, foregrounds = findings.backgrounds, findings.foregrounds
    count = len(findings.tuples)
    if foregrounds is None or count < findings.found or not _is_grid(backgrounds, foregrounds):
        return (
            "the rule of indexes does not hold here, for not every background has every foreground at as many places: "
            f"this is the tuple at that place among the {count:,} complete ones (of {findings.found:,})"
        )
    places = count // (len(backgrounds.names) * len(foregrounds.names))
    background, foreground, placement = rule(index, foregrounds=len(foregrounds.names), placements=places)
    return (
        f"background {background} of {len(backgrounds.names)} ({backgrounds.names[background - 1]}), "
        f"foreground {foreground} of {len(foregrounds.names)} ({foregrounds.names[foreground - 1]}), "
        f"placement {placement} of {places}"
    )


def _is_grid(backgrounds: Groups, foregrounds: Groups) -> bool:
    """Has each background each foreground, at as many places, in order?"""
    pairs = np.arange(len(backgrounds.names) * len(foregrounds.names))
    places, rest = divmod(len(backgrounds.codes), len(pairs))
    return (
        rest == 0
        and np.array_equal(backgrounds.codes, (pairs // len(foregrounds.names)).repeat(places))
        and np.array_equal(foregrounds.codes, (pairs % len(foregrounds.names)).repeat(places))
    )
