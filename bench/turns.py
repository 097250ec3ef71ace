"""Contenders in turns: each reads an epoch, then the next one does, and medians count. Knows none of them."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Epoch = Callable[[], int]
"""Goes through all there is once, and returns how many tuples that were."""

Figures = dict[str, float]
"""What is measured, by name."""


class Rate(NamedTuple):
    """Per second: the median of the rounds, and how far the slowest and the fastest lie apart, as a share."""

    median: float
    spread: float


def take_turns(contenders: Mapping[str, Epoch], rounds: int, unit: str = "tuples") -> dict[str, Rate]:
    """The rates of all over `rounds`, with one round before that counts for nothing."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, epoch in contenders.items():
            began = time.perf_counter()
            count = epoch()
            rate = count / (time.perf_counter() - began)
            say(f"round {number} of {rounds}{'' if number else ' (warms up)'}: {name}: {rate:,.0f} {unit}/s")
            if number:
                rates[name].append(rate)
    return {name: _rate(found) for name, found in rates.items()}


def _rate(found: list[float]) -> Rate:
    median = statistics.median(found)
    return Rate(median, (max(found) - min(found)) / median)


def say(line: str) -> None:
    """A line of progress."""
    print(f"  {line}", file=sys.stderr, flush=True)
