"""When to write a checkpoint: every so many steps, every so many minutes, or as often as pays. Arithmetic alone."""

import math
import re
from dataclasses import dataclass
from typing import Literal

_TEXT = re.compile(r"(\d{1,12}) steps?|(\d{1,9}(?:\.\d{1,6})?) minutes?", re.ASCII)

FIRST_SECONDS = 60.0
"""Until a save was measured, `auto` writes one after so long."""
SHORTEST_SAVES = 4.0
"""An interval of `auto` is at least so many times as long as a save takes beside the steps."""
RETRY_SECONDS = 30.0
"""After a save that failed the next one is tried so much later, if it is not due before."""


@dataclass(frozen=True)
class Interval:
    """One of the three."""

    kind: Literal["steps", "minutes", "auto"]
    value: float = 0.0

    def __str__(self) -> str:
        """In the words that `parse_interval` reads."""
        return "auto" if self.kind == "auto" else f"{self.value:f}".rstrip("0").rstrip(".") + f" {self.kind}"


def parse_interval(text: str) -> Interval:
    """`500 steps`, `10 minutes` or `auto`. Raises ValueError for anything else, and for 0."""
    if text == "auto":
        return Interval("auto")
    match = _TEXT.fullmatch(text)
    if match is None or not float(match[1] or match[2]):
        raise ValueError("expected auto, a number of steps such as '500 steps', or a time such as '10 minutes'")
    return Interval("steps", int(match[1])) if match[1] else Interval("minutes", float(match[2]))


def optimal_seconds(save_seconds: float, between_interruptions: float) -> float:
    """How long to compute between two saves so that saving and repeated work together cost the least, in seconds.

    `save_seconds` is what one save costs, `between_interruptions` the mean time between two ends without a save.
    J. W. Young, "A first order approximation to the optimum checkpoint interval" (1974), √(2·save·between), in the
    higher order of J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (2006).
    """
    if save_seconds >= 2 * between_interruptions:
        return between_interruptions
    ratio = save_seconds / (2 * between_interruptions)
    return math.sqrt(2 * save_seconds * between_interruptions) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds


class SaveTimer:
    """Knows when the next checkpoint is due. Times are in seconds of any clock that nobody sets."""

    def __init__(self, interval: Interval, between_interruptions: float, now: float) -> None:
        self._interval = interval
        self._between_interruptions = between_interruptions
        self._last = now
        self._save: tuple[float, float] | None = None
        self._retry_at = math.inf
        self._missed = False

    def due(self, global_step: int, now: float) -> bool:
        """Whether to save after step `global_step`, at time `now`."""
        if now >= self._retry_at or self._missed:
            return True
        if self._interval.kind == "steps":
            return global_step % int(self._interval.value) == 0
        return self._retry_at == math.inf and now - self._last >= self.seconds

    def missed(self) -> None:
        """One was due, but could not be begun: the next step will do."""
        self._missed = True

    @property
    def seconds(self) -> float:
        """The interval, where it is a time."""
        if self._interval.kind == "minutes":
            return 60 * self._interval.value
        if self._save is None:
            return FIRST_SECONDS
        cost, seconds = self._save
        return max(optimal_seconds(cost, self._between_interruptions), SHORTEST_SAVES * seconds)

    def began(self, now: float) -> None:
        """A save was begun."""
        self._last = now
        self._retry_at = math.inf
        self._missed = False

    def took(self, cost: float, seconds: float) -> None:
        """It ended well, after `seconds` beside the steps, of which it cost them at most `cost`."""
        self._save = cost, seconds

    def failed(self, now: float) -> None:
        """It failed."""
        self._missed = False
        self._retry_at = now + RETRY_SECONDS
