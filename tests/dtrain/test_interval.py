"""When checkpoints are written: what a configuration may say, what pays most, and when one is due."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.interval import FIRST_SECONDS, RETRY_SECONDS, Interval, SaveTimer, optimal_seconds, parse_interval

HOUR = 3600.0


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("auto", Interval("auto")),
        ("1 step", Interval("steps", 1)),
        ("500 steps", Interval("steps", 500)),
        ("1 minute", Interval("minutes", 1)),
        ("10 minutes", Interval("minutes", 10)),
        ("0.25 minutes", Interval("minutes", 0.25)),
    ],
)
def test_what_can_be_said(text: str, interval: Interval) -> None:
    assert parse_interval(text) == interval


@pytest.mark.parametrize(
    "text",
    [
        *("", "500", "0 steps", "-1 steps", "1.5 steps", "0 minutes", "0.0 minutes", "nan minutes", "inf minutes"),
        *("10 seconds", "10min", "10 minutes ", "Auto", "5 steps, 3 minutes", "1e3 steps", "٣ steps"),
        *("9" * 400 + " minutes", "9" * 400 + " steps"),
    ],
)
def test_anything_else_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected auto, a number of steps such as '500 steps', or a time such as"):
        parse_interval(text)


@given(
    st.one_of(
        st.just("auto"),
        st.integers(1, 10**12 - 1).map("{} steps".format),
        st.integers(1, 10**15 - 1).map(lambda millionths: f"{millionths // 10**6}.{millionths % 10**6:06} minutes"),
    )
)
def test_what_was_understood_can_be_written_down_and_read_again(text: str) -> None:
    interval = parse_interval(text)
    assert parse_interval(str(interval)) == interval


def test_how_an_interval_is_written_down() -> None:
    texts = ("auto", "1000000 steps", "1234567 steps", "10 minutes", "0.25 minutes", "100 minutes")
    assert [str(parse_interval(text)) for text in texts] == list(texts)
    assert str(parse_interval("1 minute")) == "1 minutes"


def expected_cost(interval: float, save: float, between: float) -> float:
    """Time for each second of useful work, with interruptions that come at random and undo the work since a save.

    Daly (2006), equation 13 without the restart: work in pieces of `interval`, each followed by a save, is repeated
    until no interruption comes in between.
    """
    return between * math.expm1((interval + save) / between) / interval


def lived_cost(interval: float, save: float, between: float, pieces: int) -> float:
    """The same, by living through it."""
    chance = random.Random(1)
    spent, left = 0.0, chance.expovariate(1 / between)
    for _ in range(pieces):
        while left < interval + save:
            spent += left
            left = chance.expovariate(1 / between)
        spent += interval + save
        left -= interval + save
    return spent / (pieces * interval)


@pytest.mark.parametrize("between", [60.0, HOUR, 24 * HOUR])
@pytest.mark.parametrize("share", [1e-6, 1e-4, 0.01, 0.1, 0.5])
def test_the_best_interval_costs_the_least(share: float, between: float) -> None:
    save = share * between
    chosen = optimal_seconds(save, between)
    steps = [between * 1.02**exponent for exponent in range(-400, 100)]
    best = min(steps, key=lambda interval: expected_cost(interval, save, between))
    assert expected_cost(chosen, save, between) <= expected_cost(best, save, between) * (1 + 0.02 * share + 1e-6)
    assert chosen == pytest.approx(best, rel=0.03 + share / 4)


@pytest.mark.parametrize(("save", "between"), [(1.0, 600.0), (30.0, 600.0)])
def test_living_through_it_costs_what_is_expected_and_the_least_there(save: float, between: float) -> None:
    chosen = optimal_seconds(save, between)
    assert lived_cost(chosen, save, between, 20_000) == pytest.approx(expected_cost(chosen, save, between), rel=0.01)
    for other in (chosen / 3, 3 * chosen):
        assert lived_cost(other, save, between, 20_000) > 1.01 * lived_cost(chosen, save, between, 20_000)


def test_a_save_that_takes_longer_than_the_time_between_two_interruptions() -> None:
    assert optimal_seconds(200, 100) == optimal_seconds(10_000, 100) == 100
    assert 0 < optimal_seconds(199, 100) < 200


def test_every_so_many_steps() -> None:
    timer = SaveTimer(Interval("steps", 4), HOUR, now=0.0)
    assert [step for step in range(1, 13) if timer.due(step, now=1e6)] == [4, 8, 12]


def test_every_so_many_minutes_from_the_begin_of_the_last() -> None:
    timer = SaveTimer(Interval("minutes", 0.5), HOUR, now=100.0)
    assert not timer.due(4, now=129.9)
    assert timer.due(5, now=130.0)
    timer.began(130.0)
    timer.took(20.0, seconds=20.0)
    assert not timer.due(6, now=159.0)
    assert timer.due(7, now=160.0)


def test_auto_begins_early_and_then_takes_the_measured_time() -> None:
    timer = SaveTimer(Interval("auto"), HOUR, now=0.0)
    assert not timer.due(1, now=FIRST_SECONDS - 1)
    assert timer.due(1, now=FIRST_SECONDS)
    timer.began(FIRST_SECONDS)
    timer.took(2.0, seconds=3.0)
    best = optimal_seconds(2.0, HOUR)
    assert 110 < best < 125
    assert timer.seconds == best
    assert not timer.due(2, now=FIRST_SECONDS + best - 0.1)
    assert timer.due(3, now=FIRST_SECONDS + best)
    timer.began(1000.0)
    timer.took(8.0, seconds=9.0)
    assert timer.seconds == optimal_seconds(8.0, HOUR)


def test_auto_leaves_most_of_the_time_to_something_else_than_saving() -> None:
    timer = SaveTimer(Interval("auto"), 60.0, now=0.0)
    timer.took(1.0, seconds=50.0)
    assert timer.seconds == 200.0


@pytest.mark.parametrize("interval", [Interval("steps", 1000), Interval("minutes", 60), Interval("auto")])
def test_one_that_failed_is_tried_again_before_the_next(interval: Interval) -> None:
    timer = SaveTimer(interval, 100 * HOUR, now=0.0)
    timer.took(100.0, seconds=100.0)
    timer.began(1000.0)
    timer.failed(1010.0)
    assert not timer.due(1, now=1010.0 + RETRY_SECONDS - 1)
    assert timer.due(2, now=1010.0 + RETRY_SECONDS)
    timer.began(1050.0)
    assert not timer.due(3, now=1050.0 + RETRY_SECONDS)
    timer.failed(1051.0)
    assert timer.due(4, now=1051.0 + RETRY_SECONDS)


def test_one_that_failed_may_be_due_before_it_would_be_tried_again() -> None:
    timer = SaveTimer(Interval("steps", 5), HOUR, now=0.0)
    timer.began(0.0)
    timer.failed(1.0)
    assert timer.due(5, now=2.0)


def test_one_that_was_due_while_another_was_written_comes_with_the_next_step() -> None:
    timer = SaveTimer(parse_interval("10 steps"), 3600.0, now=0.0)
    assert timer.due(10, 1.0)
    timer.missed()
    assert timer.due(11, 1.0)
    timer.began(1.0)
    assert not timer.due(12, 1.0)


def test_by_time_a_failed_one_is_not_tried_again_at_every_step() -> None:
    timer = SaveTimer(parse_interval("1 minutes"), 3600.0, now=0.0)
    assert timer.due(5, 61.0)
    timer.failed(61.0)
    assert not timer.due(6, 62.0)
    assert timer.due(7, 61.0 + RETRY_SECONDS)
