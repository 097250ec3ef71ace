"""Figures by background: which scenes a model finds hard. Keeps one row of sums a background, never a sample."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dtrain.evaluator import Seen, of_each_process
from dtrain.figures import Figures
from dtrain.sample_sums import figures_of
from dtrain.vote import Vote

MAX_BACKGROUNDS = 1000

_KEY = re.compile(r"(?s)(.+)_fg_[0-9]+(?:_flip)?(?:_[0-9]+){1,2}")


@dataclass(frozen=True)
class Part:
    """The samples of one background."""

    samples: int
    figures: Figures


def background_of(key: str) -> str | None:
    """The background in a key that `shard-tools build` made: "bg12" of bg12_fg_3_40; None for a key of another form."""
    match = _KEY.fullmatch(key)
    return match and match[1]


@dataclass
class Breakdown:
    """Sums by background; None once a key names no background, or there are more than MAX_BACKGROUNDS."""

    sums: dict[str, Tensor] | None = field(default_factory=dict)
    reason: str = ""
    """Why there are none."""

    def add(self, seen: Seen) -> None:
        """Take a batch."""
        names = [background_of(key) for key in seen.batch.keys]
        for key, name, sums in zip(seen.batch.keys, names, seen.sums, strict=True):
            if name is None:
                self._give_up(f"the key {key!r} names none; expected such as bg12_fg_3_40")
            else:
                self._add(name, sums)

    def gathered(self, vote: Vote) -> "Breakdown":
        """That of all processes together, the same on each; to be called by every process."""
        together = Breakdown()
        for other in of_each_process(vote, self):
            together._take(other)
        return together

    def parts(self, metric: str, *, higher_is_better: bool) -> Mapping[str, Part]:
        """By background, the worst by `metric` first, which is what is no number; those that have none of it last."""
        parts = {
            name: Part(samples=int(sums[0]), figures=figures_of(sums))
            for name, sums in sorted((self.sums or {}).items())
        }

        def rank(item: tuple[str, Part]) -> tuple[bool, float]:
            value = item[1].figures.get(metric)
            if value is None:
                return True, 0.0
            return False, -math.inf if math.isnan(value) else value if higher_is_better else -value

        return dict(sorted(parts.items(), key=rank))

    def _take(self, other: "Breakdown") -> None:
        if other.sums is None:
            self._give_up(other.reason)
        for name, sums in (other.sums or {}).items():
            self._add(name, sums)

    def _add(self, name: str, sums: Tensor) -> None:
        if self.sums is None:
            return
        self.sums[name] = self.sums.get(name, torch.zeros_like(sums)) + sums
        if len(self.sums) > MAX_BACKGROUNDS:
            self._give_up(f"there are more than {MAX_BACKGROUNDS:,}")

    def _give_up(self, reason: str) -> None:
        if self.sums is not None:
            self.sums, self.reason = None, reason
