"""When a training is killed, who is hit, and with what: drawn from a seed. Knows no processes and no files."""

from dataclasses import dataclass
from random import Random
from signal import SIGKILL, SIGTERM, Signals
from typing import Literal, NamedTuple

Victim = Literal["rank", "launcher", "all", "decoder"]

MOST_FOLDER_CHANGES = 10
LONGEST_PAUSE_SECONDS = 2.0


class RunLength(NamedTuple):
    """Of a run that is let alone."""

    steps: int
    seconds: float
    """From the launch to the end of the last process."""


@dataclass(frozen=True)
class AfterTime:
    """So long after the launch: also before it trains."""

    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s after the launch"


@dataclass(frozen=True)
class AfterRanks:
    """So long after the launcher has started the first training process: while they import, meet, open, and load."""

    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s after its ranks"


@dataclass(frozen=True)
class AfterSteps:
    """As soon as the launch has logged so many steps."""

    steps: int

    def __str__(self) -> str:
        return f"after {self.steps} steps"


@dataclass(frozen=True)
class AtSave:
    """So long after the names in the folder of checkpoints have changed for the `change`-th time since the launch."""

    change: int
    seconds: float

    def __str__(self) -> str:
        return f"{1000 * self.seconds:.0f} ms after change {self.change} in checkpoints"


Moment = AfterTime | AfterRanks | AfterSteps | AtSave


@dataclass(frozen=True)
class Kill:
    """What one launch suffers."""

    moment: Moment
    victim: Victim
    """What is hit; something else if there is none of that kind at that moment."""
    choice: float
    """In [0, 1): which of them, or in which order."""
    signals: tuple[Signals, ...]
    pause: float
    """Seconds between two signals."""

    @property
    def blow(self) -> str:
        """The signals by name."""
        return ", ".join(signal.name for signal in self.signals)

    def __str__(self) -> str:
        return f"{self.blow} to {self.victim} {self.moment}"


def draw_kill(seed: int, launch: int, length: RunLength) -> Kill:
    """The kill of the launch with that number: always the same for runs of that length."""
    random = Random(f"kill {seed} {launch}")
    victim: Victim = random.choices(("rank", "launcher", "all", "decoder"), (0.35, 0.25, 0.3, 0.1))[0]
    blows = [(SIGKILL,), (SIGTERM, SIGKILL)]
    if victim != "decoder":  # which SIGTERM is nothing to
        blows += [(SIGTERM,), (SIGTERM, SIGTERM)]
    return Kill(
        moment=_draw_moment(random, length),
        victim=victim,
        choice=random.random(),
        signals=random.choices(blows, (0.4, 0.15, 0.3, 0.15)[: len(blows)])[0],
        pause=random.uniform(0, LONGEST_PAUSE_SECONDS),
    )


def draw_processes(seed: int, launch: int, most: int) -> int:
    """With how many processes that launch goes on, from 1 to `most`."""
    return Random(f"processes {seed} {launch}").randint(1, most)


def _draw_moment(random: Random, length: RunLength) -> Moment:
    kind = random.choices((AfterTime, AfterRanks, AfterSteps, AtSave), (0.4, 0.2, 0.15, 0.25))[0]
    if kind is AfterRanks:
        return AfterRanks(random.uniform(0, length.seconds / 2))
    if kind is AfterSteps:
        return AfterSteps(random.randint(1, max(length.steps // 2, 1)))
    if kind is AtSave:
        return AtSave(random.randint(1, MOST_FOLDER_CHANGES), random.choice((0.0, random.uniform(0, 0.1))))
    return AfterTime(random.uniform(0, length.seconds))
