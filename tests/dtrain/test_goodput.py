"""Goodput: hand-made events with known answers, and simulated runs whose every second is accounted for twice."""

import math
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.report.goodput import Goodput, measure_goodput
from dtrain.report.goodput_words import describe_goodput

Line = dict[str, object]
T0 = 1_800_000_000.0


def session(wall: float, *events: tuple[float, str, int, Line]) -> list[Line]:
    """The lines of a session whose process started at `wall`: for each event (uptime, name, step, details)."""
    return [
        {"time": T0 + wall + uptime, "uptime": uptime, "event": name, "global_step": step, **details}
        for uptime, name, step, details in events
    ]


def parts(lines: list[Line]) -> dict[str, float]:
    """The parts that took any time, in ms so that sums of decimals come out even."""
    goodput = known(lines)
    return {part: round(seconds, 3) for part, seconds in asdict(goodput.seconds).items() if round(seconds, 3)}


def known(lines: list[Line]) -> Goodput:
    goodput = measure_goodput(lines)
    assert goodput is not None
    return goodput


def killed_after_a_checkpoint() -> list[Line]:
    """Killed at step 14; the checkpoint of step 10 was taken at 15 s, held steps up 0.5 s, and lasted until 17 s."""
    return session(
        0,
        (4, "start", 0, {}),
        (6, "first_step", 1, {"began": 5}),
        (14, "speed", 9, {}),
        (16, "speed", 10, {}),
        (17, "checkpoint", 10, {"checkpoint": "step-00000010", "at": 15, "held_up": 0.5, "seconds": 2}),
        (20, "speed", 14, {}),
    )


def test_a_run_without_interruption() -> None:
    lines = session(
        0,
        (4, "start", 0, {}),
        (6, "first_step", 1, {"began": 5}),
        (17, "checkpoint", 10, {"at": 15, "held_up": 0.5, "seconds": 2}),
        (30, "evaluate", 20, {"seconds": 6}),
        (35, "nonfinite", 24, {"count": 1}),
        (40, "done", 30, {}),
    )
    assert parts(lines) == {"starting": 5, "saving": 0.5, "evaluating": 6, "useful": 28.5}
    goodput = known(lines)
    assert goodput.seconds.total == 40
    assert goodput.share == 28.5 / 40
    assert (goodput.sessions, goodput.preemptions, goodput.repeated_steps) == (1, 0, 0)


def test_steps_after_the_checkpoint_that_is_resumed_from_are_repeated() -> None:
    again = session(30, (4, "resume", 10, {}), (7, "first_step", 11, {"began": 6}), (26, "done", 30, {}))
    lines = killed_after_a_checkpoint() + again
    assert parts(lines) == {"useful": 10 + 20, "saving": 0.5, "repeated": 4.5, "starting": 5 + 6, "away": 10}
    assert known(lines).repeated_steps == 4
    assert known(lines).seconds.total == 56


def test_steps_that_only_the_metrics_knew_of_count_as_repeated() -> None:
    lines = killed_after_a_checkpoint() + session(30, (4, "resume", 10, {"repeated_steps": 7}))
    assert known(lines).repeated_steps == 7


def test_a_skipped_step_is_a_step_like_others() -> None:
    lines = killed_after_a_checkpoint() + session(0, (21, "nonfinite", 15, {"count": 1}))
    assert parts(lines) == {"useful": 21 - 5.5, "saving": 0.5, "starting": 5}
    lines += session(30, (4, "resume", 10, {}))
    assert known(lines).repeated_steps == 5


def test_without_a_line_of_the_checkpoint_its_time_lies_between_the_nearest_events() -> None:
    lines = [line for line in killed_after_a_checkpoint() if line["event"] != "checkpoint"]
    lines += session(30, (4, "resume", 12, {}))
    assert parts(lines) == {"useful": 13, "repeated": 2, "starting": 5 + 4, "away": 10}, "step 10 at 16 s, 14 at 20 s"


def test_a_fallback_over_damaged_checkpoints_takes_back_what_earlier_sessions_did() -> None:
    lines = session(
        0,
        (1, "start", 0, {}),
        (3, "first_step", 1, {"began": 2}),
        (52, "checkpoint", 50, {"at": 52, "held_up": 1}),
        (93, "checkpoint", 90, {"at": 93, "held_up": 1}),
        (104, "speed", 100, {}),
    )
    lines += session(
        110,
        (1, "resume", 90, {"repeated_steps": 10}),
        (3, "first_step", 91, {"began": 2}),
        (32, "checkpoint", 120, {"at": 32, "held_up": 1}),
        (43, "speed", 130, {}),
    )
    lines += session(
        160,
        (0.5, "passed_over", 50, {"checkpoint": "step-00000120", "reason": "torn"}),
        (0.5, "passed_over", 50, {"checkpoint": "step-00000090", "reason": "torn"}),
        (1, "resume", 50, {"repeated_steps": 80}),
        (3, "first_step", 51, {"began": 2}),
        (102, "done", 150, {}),
    )
    assert parts(lines) == {
        "useful": 50 + 100,
        "saving": 1,
        "repeated": (104 - 53) + (43 - 2),
        "starting": 2 + 2 + 2,
        "away": 6 + 7,
    }
    assert known(lines).repeated_steps == 10 + 80


def test_a_start_from_nothing_repeats_everything() -> None:
    lines = killed_after_a_checkpoint() + session(20, (4, "start", 0, {}))
    assert parts(lines) == {"repeated": 15, "starting": 5 + 4}


def test_a_clean_preemption_repeats_nothing() -> None:
    lines = session(
        0,
        (4, "start", 0, {}),
        (6, "first_step", 1, {"began": 5}),
        (18, "checkpoint", 10, {"at": 15, "held_up": 3, "seconds": 3}),
        (18.5, "preempted", 10, {"signal": "SIGTERM"}),
    )
    lines += session(20, (4, "resume", 10, {"repeated_steps": 0}), (10, "done", 20, {}))
    assert parts(lines) == {"useful": 10, "saving": 3, "starting": 5 + 0.5 + 10, "away": 1.5}
    assert (known(lines).preemptions, known(lines).repeated_steps) == (1, 0)


def test_leaving_after_the_last_save_is_not_useful() -> None:
    lines = session(
        0,
        (4, "start", 0, {}),
        (6, "first_step", 1, {"began": 5}),
        (16, "checkpoint", 10, {"at": 15, "held_up": 1}),
        (26, "evaluate", 10, {"seconds": 9}),
        (28, "done", 10, {}),
    )
    assert parts(lines) == {"useful": 10 + 1, "saving": 1, "evaluating": 9, "starting": 5 + 2}


def test_a_save_that_failed_may_have_held_steps_up_too() -> None:
    lines = killed_after_a_checkpoint()
    lines += session(0, (24, "save_failed", 15, {"reason": "no space", "at": 21, "held_up": 0.5}))
    assert parts(lines) == {"useful": 18, "saving": 1, "starting": 5}


def test_an_evaluation_after_the_checkpoint_that_is_resumed_from_is_repeated() -> None:
    lines = session(
        0,
        (4, "start", 0, {}),
        (6, "first_step", 1, {"began": 5}),
        (16, "checkpoint", 10, {"at": 15, "held_up": 1}),
        (26, "evaluate", 10, {"seconds": 9}),
    )
    lines += session(26, (4, "resume", 10, {}), (14, "evaluate", 10, {"seconds": 10}), (15, "done", 10, {}))
    assert parts(lines) == {"useful": 10, "saving": 1, "repeated": 9, "evaluating": 10, "starting": 5 + 1 + 5}


def test_an_evaluation_before_the_first_step_is_no_starting_but_repeated_if_the_next_session_begins_with_it() -> None:
    lines = session(0, (4, "resume", 10, {}), (14, "evaluate", 10, {"seconds": 9}))
    assert parts(lines) == {"starting": 5, "evaluating": 9}
    lines += session(14, (4, "resume", 10, {}), (14, "evaluate", 10, {"seconds": 9}), (15, "done", 10, {}))
    assert parts(lines) == {"starting": 5 + 6, "repeated": 9, "evaluating": 9}


def test_killed_while_starting_again_and_again() -> None:
    lines = killed_after_a_checkpoint()
    lines += session(20, (4, "resume", 10, {})) + session(25, (3, "resume", 10, {}))
    lines += session(30, (4, "resume", 10, {}), (6, "first_step", 11, {"began": 5}), (7, "speed", 12, {}))
    assert parts(lines) == {"useful": 10 + 2, "saving": 0.5, "repeated": 4.5, "starting": 5 + 4 + 3 + 5, "away": 1 + 2}
    assert (known(lines).sessions, known(lines).repeated_steps) == (4, 4)


def test_a_run_that_has_just_begun_is_all_starting() -> None:
    goodput = known(session(0, (4, "start", 0, {})))
    assert (goodput.seconds.starting, goodput.seconds.total, goodput.share) == (4, 4, 0)


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_inside_a_session_changes_nothing(jump: float) -> None:
    again = session(30, (4, "resume", 10, {}), (6, "first_step", 11, {"began": 5}), (26, "done", 30, {}))
    expected = parts(killed_after_a_checkpoint() + again)
    first = killed_after_a_checkpoint()
    shifted: list[Line] = [{**line, "time": float(str(line["time"])) + jump} for line in [*first[3:], *again]]
    assert parts(first[:3] + shifted) == expected


def test_a_clock_set_back_between_sessions_gives_no_negative_time() -> None:
    lines = killed_after_a_checkpoint() + session(-500, (4, "resume", 10, {}))
    assert parts(lines) == {"useful": 10, "saving": 0.5, "repeated": 4.5, "starting": 5 + 4}


def test_sessions_without_uptime_are_not_guessed_at() -> None:
    old: list[Line] = [{"time": T0, "event": "start", "global_step": 0}]
    assert measure_goodput([]) is None
    assert measure_goodput(old + killed_after_a_checkpoint()) is None
    assert describe_goodput(None).startswith("goodput: not known")


def test_what_says_nothing_of_use_changes_nothing() -> None:
    lines = killed_after_a_checkpoint()
    noise: list[Line] = [
        {},
        {"event": "speed", "time": T0 + 5},
        {"event": "bad_sample", "time": T0, "uptime": 900.0, "global_step": 900, "process": 3},
        {"event": "of the future", "time": T0 + 5, "uptime": 5.0, "global_step": 12345},
        {"event": "speed", "time": T0 + 5, "uptime": math.nan, "global_step": 900},
        {"event": "speed", "time": "now", "uptime": "soon", "global_step": None},
        {"event": ["speed"], "time": T0 + 5, "uptime": 5, "global_step": 3},
        {"event": "passed_over", "time": T0 + 900, "uptime": 900.0, "global_step": 3},
    ]
    again = session(30, (4, "resume", 10, {}))
    noisy = [noise[0]] + [line for pair in zip(lines, noise[1:], strict=False) for line in pair] + noise
    assert measure_goodput(noisy + again) == measure_goodput(lines + again)


def test_the_order_of_lines_inside_a_session_does_not_matter() -> None:
    first, *others = killed_after_a_checkpoint()
    again = session(30, (4, "resume", 12, {}))
    expected = parts([first, *others, *again])
    for seed in range(5):
        shuffled = random.Random(seed).sample(others, len(others))
        assert parts([first, *shuffled, *again]) == expected


def test_a_missing_first_step_is_made_up_for_by_the_next_sign_of_progress() -> None:
    lines = [line for line in killed_after_a_checkpoint() if line["event"] != "first_step"]
    assert parts(lines) == {"starting": 14, "useful": 5.5, "saving": 0.5}


def test_days_of_events_take_little_memory_and_steps_are_found_among_them() -> None:
    def lines() -> Iterator[Line]:
        yield from session(0, (4, "start", 0, {}), (6, "first_step", 1, {"began": 5}))
        for second in range(6, 10_006):
            yield from session(0, (second, "speed", 10 * (second - 5), {}))
        yield from session(10_100, (4, "resume", 90_000, {}))

    tracemalloc.start()
    goodput = measure_goodput(lines())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert goodput is not None
    assert peak < 100_000
    assert goodput.seconds.useful == pytest.approx(9_000, abs=1)
    assert goodput.seconds.repeated == pytest.approx(1_000, abs=1)


def test_the_line_for_the_terminal_names_the_largest_losses_first() -> None:
    lines = killed_after_a_checkpoint() + session(
        30, (4, "resume", 10, {}), (7, "first_step", 11, {"began": 6}), (3900, "done", 3000, {})
    )
    assert describe_goodput(measure_goodput(lines)) == (
        "goodput 99.3% of 1 h 5 min; lost: 0.3% starting, 0.3% away, 0.1% repeated"
    )
    assert describe_goodput(measure_goodput(killed_after_a_checkpoint()[:1])) == (
        "goodput 0.0% of 4.0 s; lost: 100.0% starting"
    )


class SimulatedRun:
    """A run with known truth: keeps what each second was spent on, and writes the events that a trainer writes."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.lines: list[Line] = []
        self.spent: list[tuple[int, str, int, float]] = []
        """(session, on what, step, seconds)"""
        self.resumed_at: list[int] = []
        self.checkpoints = [0]
        self.away = 0.0
        self.wall = 0.0

    def session(self, steps: int) -> None:
        """One launch from one of the checkpoints, killed or preempted after `steps` steps."""
        draw = self.draw
        first = draw.choice(self.checkpoints[-3:])
        self.checkpoints = [step for step in self.checkpoints if step <= first]
        self.resumed_at.append(first)
        self.now, self.step = 0.0, first
        self.pending: list[tuple[int, Line]] = []
        self.spend("starting", 1)
        self.event("resume" if first else "start")
        self.spend("starting", 3)
        for index in range(steps):
            if draw.random() < 0.2:
                self.evaluate()
            began = self.now
            self.step += 1
            self.spend("step", 1)
            self.event("first_step" if index == 0 else "speed", began=began)
            self.checkpoints_become_durable()
            if draw.random() < 0.4:
                self.save()
        self.event(draw.choice(["speed", "preempted"]))
        gap = draw.uniform(0, 30)
        self.away += gap
        self.wall += self.now + gap

    def spend(self, what: str, most: float) -> None:
        seconds = self.draw.uniform(most / 10, most)
        self.now += seconds
        self.spent.append((len(self.resumed_at) - 1, what, self.step, seconds))

    def event(self, name: str, **details: object) -> None:
        self.lines += session(self.wall, (self.now, name, self.step, details))

    def evaluate(self) -> None:
        began = self.now
        self.spend("evaluation", 5)
        self.event("evaluate", seconds=self.now - began)

    def save(self) -> None:
        at = self.now
        self.spend("save", 0.5)
        self.pending.append((self.step, {"at": at, "held_up": self.now - at}))
        if self.draw.random() < 0.5:
            self.checkpoints_become_durable()

    def checkpoints_become_durable(self) -> None:
        for step, details in self.pending:
            self.lines += session(self.wall, (self.now, "checkpoint", step, details))
            self.checkpoints.append(step)
        self.pending = []

    def truth(self) -> dict[str, float]:
        """Seconds of each part: work is lost if a later session went on from before it."""
        names = {"step": "useful", "evaluation": "evaluating", "save": "saving"}
        seconds = dict.fromkeys(("useful", "evaluating", "saving", "repeated", "starting"), 0.0)
        for number, what, step, spent in self.spent:
            kept = min(self.resumed_at[number + 1 :], default=math.inf)
            lost = step > kept or (step == kept and what == "evaluation")
            if what == "starting":
                seconds["starting"] += spent
            else:
                seconds["repeated" if lost else names[what]] += spent
        return {**seconds, "away": self.away}


@given(st.integers(0, 2**32), st.lists(st.integers(0, 12), min_size=1, max_size=7))
def test_every_second_of_a_simulated_run_is_in_its_part(seed: int, sessions: list[int]) -> None:
    run = SimulatedRun(random.Random(seed))
    for steps in sessions:
        run.session(steps)
    run.lines += session(run.wall, (0.0, "resume", run.checkpoints[-1], {}))
    run.resumed_at.append(run.checkpoints[-1])
    goodput = known(run.lines)
    assert asdict(goodput.seconds) == pytest.approx(run.truth(), abs=1e-5)
    assert goodput.seconds.total == pytest.approx(run.wall, abs=1e-5)


names = st.sampled_from(["start", "resume", "first_step", "speed", "checkpoint", "evaluate", "preempted", "done", "?"])
numbers = st.floats(-1e6, 1e6) | st.integers(-5, 50)
values = numbers | st.none() | st.just("text") | st.just(math.inf) | st.booleans()
keys = st.sampled_from(["at", "held_up", "seconds", "began", "repeated_steps", "process", "signal"])


@given(
    st.lists(
        st.builds(
            lambda name, time, uptime, step, details: {
                "event": name,
                "time": time,
                "uptime": uptime,
                "global_step": step,
                **details,
            },
            names,
            numbers,
            numbers,
            st.integers(-5, 50),
            st.dictionaries(keys, values, max_size=4),
        ),
        max_size=40,
    )
)
def test_no_nonsense_gives_a_negative_part(lines: list[Line]) -> None:
    goodput = measure_goodput(lines)
    if goodput is not None:
        seconds = asdict(goodput.seconds)
        assert all(value >= 0 and math.isfinite(value) for value in seconds.values()), seconds
        assert goodput.seconds.total == pytest.approx(sum(seconds.values()))
        assert 0 <= goodput.share <= 1
        assert goodput.repeated_steps >= 0
