"""Takes the lines of events.jsonl: the rare events are kept, the frequent ones summed up. Opens no file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dtrain.report.curve import Curve, Points
from dtrain.report.goodput import GoodputMeter
from dtrain.report.json_values import finite, number, whole

_SUMMED_UP = {"speed", "checkpoint", "evaluate", "bad_sample"}
_COUNTED = {"nonfinite", "save_failed"}
_MAX_BAD_KEYS = 10_000


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl: `time` in seconds since 1970, UTC; `details` are its other fields.

    `times`: how often the same came in a row; time and step are those of the first, details of the last.
    """

    time: float
    name: str
    global_step: int | None
    details: Mapping[str, object]
    times: int = 1


@dataclass
class Lives:
    """The stretches of time, each from a start or resume to its last event, that a run was alive; seconds.

    A checkpoint passed over comes before the resume that it belongs to, so it ends no stretch.
    """

    stretches: list[list[float]] = field(default_factory=list)

    def see(self, event: Event) -> None:
        """Take the next event."""
        if event.name == "passed_over":
            return
        if event.name in ("start", "resume") or not self.stretches:
            self.stretches.append([event.time, event.time])
        self.stretches[-1][1] = max(self.stretches[-1][1], event.time)

    @property
    def seconds(self) -> float:
        """Time alive, all stretches together."""
        return sum(end - begin for begin, end in self.stretches)

    @property
    def seconds_away(self) -> float:
        """Time between the first sign of life and the last that belongs to no stretch."""
        if not self.stretches:
            return 0.0
        return max(0.0, self.stretches[-1][1] - self.stretches[0][0] - self.seconds)


class Events:
    """What happened to a run. `samples_by_step` says how many training samples were seen at a step."""

    def __init__(self, samples_by_step: Points) -> None:
        self.rare: list[Event] = []
        self.lives = Lives()
        self.meter = GoodputMeter()
        self.checkpoints = 0
        self.last_checkpoint_step: int | None = None
        self.speed = Curve()
        self.data_wait = Curve()
        self._bad_keys: set[str] = set()
        self._bad = 0
        self._first_bad = ""
        self._samples_by_step = samples_by_step

    @property
    def notes(self) -> list[str]:
        """What a reader should know besides."""
        notes = []
        if self.lives.stretches and self.meter.goodput() is None:
            notes.append("events.jsonl: of an older version, or damaged: goodput can't be measured without uptimes")
        if self._bad:
            different = f"{len(self._bad_keys):,}{' or more' if len(self._bad_keys) == _MAX_BAD_KEYS else ''}"
            notes.append(
                f"samples that could not be decoded: {self._bad:,} times, {different} different ones, steps that were "
                "done again included; in training another one stood in, an evaluation left them out. "
                f"First: {self._first_bad}"
            )
        return notes

    def take(self, line: Mapping[str, object]) -> bool:
        """Take one line; return whether it was understood."""
        time, name = finite(line.get("time")), line.get("event")
        if time is None or not isinstance(name, str):
            return False
        self.meter.take(line)
        details = {key: line[key] for key in line if key not in ("time", "uptime", "event", "global_step")}
        event = Event(time, name, whole(line.get("global_step")), details)
        self.lives.see(event)
        if name == "first_step":
            self._take_first_step(details)
        elif name not in _SUMMED_UP:
            self._keep(event)
        elif name == "checkpoint":
            self.checkpoints += 1
            self.last_checkpoint_step = event.global_step
        elif name == "speed" and event.global_step is not None:
            self._take_speed(self._samples_by_step.at(event.global_step), details)
        elif name == "bad_sample":
            self._bad += 1
            self._first_bad = self._first_bad or str(details.get("reason", ""))
            if len(self._bad_keys) < _MAX_BAD_KEYS:
                self._bad_keys.add(str(details.get("key", "")))
        return True

    def _keep(self, event: Event) -> None:
        """Keep an event; one more of the same in a row is only counted."""
        last = self.rare[-1] if self.rare else None
        if last and event.name == last.name and event.name in _COUNTED:
            self.rare[-1] = replace(last, details=event.details, times=last.times + 1)
        else:
            self.rare.append(event)

    def _take_first_step(self, details: Mapping[str, object]) -> None:
        """Say at the session's beginning how long it took to come to its first step, in seconds."""
        for index in reversed(range(len(self.rare))):
            begin = self.rare[index]
            if begin.name in ("start", "resume"):
                self.rare[index] = replace(begin, details={**begin.details, "first_step_after": details.get("began")})
                return

    def _take_speed(self, samples: float, details: Mapping[str, object]) -> None:
        for curve, key in ((self.speed, "samples_per_second"), (self.data_wait, "data_wait")):
            value = number(details.get(key))
            if value is not None:
                curve.add(samples, value)
