"""Which tars belong to which split, by patterns of their names. Pure: looks at no file."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from shard_tools.errors import UserError

SHOWN = 3

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_MAX_RANGE = 10**6


def assign(names: Sequence[str], patterns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The names that the patterns of each split match, in natural order (2 before 10).

    Patterns are those of fnmatch, with braces as in "train-{000000..000099}.tar" and "{a,b}.tar", each part of which
    has to match. Raises UserError for a pattern, or part, that matches nothing, and for a name in two splits.
    """
    chosen: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for split, of_split in patterns.items():
        matched = {name for pattern in of_split for name in _matching(names, split, pattern)}
        for name in sorted(matched, key=natural_key):
            if name in owner:
                raise UserError(
                    f"{name}: in two splits, {owner[name]} and {split}; a tar can be in one: change the patterns"
                )
            owner[name] = split
        chosen[split] = sorted(matched, key=natural_key)
    return chosen


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts names by the numbers in them: 2 before 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def expand_braces(pattern: str) -> Iterator[str]:
    """The patterns that one with braces stands for: {a,b}, and {08..11} with the zeros of its first number.

    Raises ValueError for a range that runs backwards or has over a million numbers.
    """
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    for part in _alternatives(found[1]):
        yield from expand_braces(before + part + after)


def _alternatives(inside: str) -> Iterable[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MAX_RANGE:
        raise ValueError(f"expected {{FIRST..LAST}} with FIRST not after LAST, and at most {_MAX_RANGE:,} numbers")
    return (f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1))


def _matching(names: Sequence[str], split: str, pattern: str) -> set[str]:
    matched: set[str] = set()
    missing: list[str] = []
    there = set(names)
    try:
        for part in expand_braces(pattern):
            is_name = not any(mark in part for mark in "*?[")
            found = {part} & there if is_name else {name for name in names if fnmatchcase(name, part)}
            matched |= found
            if not found:
                missing.append(part)
    except ValueError as error:
        raise UserError(f"--split {split}={pattern}: {error}") from None
    if missing:
        what = "" if missing == [pattern] else f"{examples(missing)}: "
        raise UserError(
            f"--split {split}={pattern}: {what}no such tar among the {len(names):,} that are there "
            f"({examples(names)}); patterns are of file names, without folders"
        )
    return matched


def examples(names: Sequence[str]) -> str:
    """The first of some names, in natural order."""
    first = ", ".join(sorted(names, key=natural_key)[:SHOWN])
    return first + (", …" if len(names) > SHOWN else "")
