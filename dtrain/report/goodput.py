"""Where the time of a run went: useful steps, and what saving, evaluating, repeating and restarting took from them.

Pure arithmetic over events; reads no files.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from dtrain.report.json_values import finite, whole

Pause = Literal["evaluating", "saving"]

_MAX_POINTS = 64
_PROGRESS = {"first_step", "speed", "checkpoint", "evaluate", "nonfinite", "preempted", "failed", "done"}


@dataclass(frozen=True)
class Seconds:
    """All time of a run in parts; seconds, none negative.

    useful: steps whose result was kept. A step that was skipped because its loss was not finite is one of them:
    its batch was looked at once, as in a run that was never stopped.
    evaluating, saving: steps stood still for it; what a background save does beside them is not in it.
    repeated: after the step from which a later session went on, until the last sign of life: what was done then,
    steps or an evaluation, was done again.
    starting: from the start of a session's process until its first step is computed, or until its end if it came
    to none; and from the end of its last save until it was gone, where no step of it had to be repeated.
    away: from the last sign of life of a session to the start of the next one's process.
    """

    useful: float = 0.0
    evaluating: float = 0.0
    saving: float = 0.0
    repeated: float = 0.0
    starting: float = 0.0
    away: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all parts: from the start of the first process to the last sign of life."""
        return self.useful + self.evaluating + self.saving + self.repeated + self.starting + self.away


@dataclass(frozen=True)
class Goodput:
    """Where the time of a run went, and how often it was interrupted.

    A session is one launch. `repeated_steps` are as many as were noticed: a kill may come before a step is noted.
    """

    seconds: Seconds
    sessions: int
    preemptions: int
    repeated_steps: int

    @property
    def share(self) -> float:
        """Useful steps' time over all time, in [0, 1]: the goodput."""
        total = self.seconds.total
        return self.seconds.useful / total if total else 0.0


def measure_goodput(events: Iterable[Mapping[str, object]]) -> Goodput | None:
    """Return where the time of a run went, from the lines of its events.jsonl; None where that is not known.

    It is not known before the first `start` or `resume`, nor if one of them comes without `time`, `uptime` or
    `global_step`, as those of older versions do. Lines of other processes than the main one, and those that say
    nothing of use here, are passed over. A run that is still going on, or that nobody resumed yet, may lose some of
    what counts as useful now.

    Inside a session only `uptime` counts, so a clock that is set meanwhile changes nothing. Time away is the
    difference of two readings of the clock, the last of one session and the first of the next: a clock set between
    them, or another machine's, makes it longer or shorter by as much, but never negative.
    """
    meter = GoodputMeter()
    for event in events:
        meter.take(event)
    return meter.goodput()


class GoodputMeter:
    """Takes events one by one. Holds a bounded number of points a session, and its saves and evaluations."""

    def __init__(self) -> None:
        self._sessions: list[_Session] = []
        self._preemptions = 0
        self._repeated_steps = 0
        self._known = True

    def take(self, event: Mapping[str, object]) -> None:
        """Take the next line of events.jsonl."""
        name = event.get("event")
        if "process" in event or name == "passed_over":  # passed over before the resume of a session
            return
        time, uptime, step = finite(event.get("time")), finite(event.get("uptime")), whole(event.get("global_step"))
        if name in ("start", "resume"):
            if time is None or uptime is None or step is None:
                self._known = False
            else:
                self._begin(time, max(uptime, 0.0), step, max(whole(event.get("repeated_steps")) or 0, 0))
        elif uptime is not None and self._sessions:
            self._sessions[-1].see(str(name), event, time, max(uptime, 0.0), step)
            self._preemptions += name == "preempted"

    def goodput(self) -> Goodput | None:
        """Return where the time went so far; see `measure_goodput`."""
        if not self._known or not self._sessions:
            return None
        seconds: defaultdict[str, float] = defaultdict(float)
        for earlier, later in pairwise(self._sessions):
            seconds["away"] += max(0.0, later.process_start - earlier.last_time)
        kept: int | None = None  # the lowest step from which a later session went on
        for session in reversed(self._sessions):
            for part, time in session.parts(kept).items():
                seconds[part] += time
            kept = session.first if kept is None else min(kept, session.first)
        return Goodput(Seconds(**seconds), len(self._sessions), self._preemptions, self._repeated_steps)

    def _begin(self, time: float, uptime: float, step: int, repeated: int) -> None:
        if self._sessions:
            before = self._sessions[-1]
            before.reached = max(before.reached, step + repeated)
            self._repeated_steps += before.reached - step
        clock = time - uptime
        self._sessions.append(_Session(process_start=clock, clock=clock, end=uptime, first=step, reached=step))


@dataclass
class _Session:
    """One launch. Steps are those of the whole run; times are uptimes in seconds if nothing else is said."""

    process_start: float
    """By the wall clock."""
    clock: float
    """Wall clock minus uptime, as last seen."""
    end: float
    """When its last sign of life came."""
    first: int
    """Steps done before it."""
    reached: int
    """Steps done at its end, as far as known."""
    left: bool = False
    """Whether it ended by itself: done, or preempted."""
    began: float | None = None
    """When its first step was computed, if an event said so."""
    points: list[tuple[float, int]] = field(default_factory=list)
    """(time, steps done then) in order, finer towards the end."""
    pauses: list[tuple[float, float, Pause]] = field(default_factory=list)
    """(from, to, what for)"""
    saved: dict[int, float] = field(default_factory=dict)
    """By step, until when its save held up the next one."""

    @property
    def last_time(self) -> float:
        """When its last sign of life came, by the wall clock."""
        return self.clock + self.end

    def see(self, name: str, event: Mapping[str, object], time: float | None, uptime: float, step: int | None) -> None:
        """Take an event of this session."""
        self.end = max(self.end, uptime)
        if time is not None:
            self.clock = time - uptime
        when = uptime
        if name == "evaluate":
            when = uptime - (finite(event.get("seconds")) or 0.0)
            self.pauses.append((when, uptime, "evaluating"))
        elif name == "first_step":
            self.began = finite(event.get("began"))
        elif name in ("preempted", "done"):
            self.left = True
        elif name in ("checkpoint", "save_failed"):
            at = finite(event.get("at"))
            when = uptime if at is None else at
            until = when + (finite(event.get("held_up")) or 0.0)
            self.pauses.append((when, until, "saving"))
            if name == "checkpoint" and step is not None:
                self.saved[step] = until
        if name in _PROGRESS and step is not None:
            self.reached = max(self.reached, step)
            insort(self.points, (when, step))
            if len(self.points) > _MAX_POINTS:
                older = len(self.points) // 2
                self.points[:older] = self.points[:older:2]

    def parts(self, kept: int | None) -> Mapping[str, float]:
        """Return the seconds of each part; `kept`: the step from which a later session went on, None if there is none.

        They add up to the whole session.
        """
        began = self._first_step_began()
        lost_from = self._left_from(began) if kept is None else self._lost_from(kept, began)
        all_lost = kept is not None and kept <= self.first
        seconds: defaultdict[str, float] = defaultdict(float)
        position = 0.0
        for start, end, part in [*sorted(self.pauses), (lost_from, lost_from, "saving")]:
            until = min(max(start, position), lost_from)
            seconds["starting"] += max(0.0, min(until, began) - position)
            seconds["useful"] += max(0.0, until - max(position, began))
            position = min(max(end, until), lost_from)
            seconds["repeated" if all_lost else part] += position - until
        again = self._done_again(lost_from, kept)
        seconds["repeated"] += again
        seconds["starting"] += self.end - lost_from - again
        return seconds

    def _left_from(self, began: float) -> float:
        """Return from when on a session that ended by itself, with all of its steps saved, had nothing left to do."""
        if not self.left or self.reached not in self.saved:
            return self.end
        return min(max(began, *(end for _, end, _ in self.pauses)), self.end)

    def _done_again(self, lost_from: float, kept: int | None) -> float:
        """Return how many seconds from `lost_from` on went into steps or evaluations; the rest only ended it."""
        lost = self.end - lost_from
        if kept is not None and self.reached > kept:
            return lost
        evaluations = (end - max(start, lost_from) for start, end, pause in self.pauses if pause == "evaluating")
        return min(lost, sum(max(0.0, seconds) for seconds in evaluations))

    def _first_step_began(self) -> float:
        began = self.began
        if began is None:
            began = next((time for time, step in self.points if step > self.first), self.end)
        return min(max(began, 0.0), self.end)

    def _lost_from(self, kept: int, began: float) -> float:
        """Return from when on all work was lost, if a later session went on from step `kept`.

        Exact for a checkpoint that this session wrote; between the nearest events otherwise.
        """
        if kept <= self.first:
            return began
        if kept in self.saved:
            return min(max(self.saved[kept], began), self.end)
        time, step = began, self.first
        for next_time, next_step in self.points:
            if next_step >= kept:
                time += (next_time - time) * (kept - step) / (next_step - step)
                return min(max(time, began), self.end)
            time, step = next_time, next_step
        return self.end
