"""The killer's plan: reproducible, and after a while everything has come that may come."""

from collections import Counter
from signal import SIGKILL, SIGTERM

from bench.chaos_plan import AfterRanks, AfterSteps, AfterTime, AtSave, RunLength, draw_kill, draw_processes

LENGTH = RunLength(steps=60, seconds=20.0)
KILLS = [draw_kill(3, launch, LENGTH) for launch in range(1000)]


def test_a_launch_has_the_same_kill_again() -> None:
    assert [draw_kill(3, launch, LENGTH) for launch in range(1000)] == KILLS
    assert [draw_kill(4, launch, LENGTH) for launch in range(1000)] != KILLS


def test_it_is_known_in_every_interpreter() -> None:
    """Not from Python's hashes, which are drawn anew."""
    assert str(draw_kill(0, 1, LENGTH)) == "SIGTERM, SIGKILL to launcher 9.50 s after the launch"
    assert [draw_processes(0, launch, 4) for launch in range(1, 9)] == [2, 1, 1, 4, 3, 3, 3, 3]


def test_every_victim_gets_every_signal() -> None:
    blows = [(SIGKILL,), (SIGTERM,), (SIGTERM, SIGKILL), (SIGTERM, SIGTERM)]
    found = Counter((kill.victim, kill.signals) for kill in KILLS)
    expected = {(victim, blow) for victim in ("rank", "launcher", "all") for blow in blows}
    expected |= {("decoder", (SIGKILL,)), ("decoder", (SIGTERM, SIGKILL))}
    assert found.keys() == expected, "SIGTERM alone is nothing to a process that decodes"


def test_moments_are_spread_over_the_life_of_a_launch() -> None:
    moments = [kill.moment for kill in KILLS]
    for moment in moments:
        match moment:
            case AfterTime(seconds):
                assert 0 <= seconds <= LENGTH.seconds
            case AfterRanks(seconds):
                assert 0 <= seconds <= LENGTH.seconds
            case AfterSteps(steps):
                assert 1 <= steps <= LENGTH.steps
            case AtSave(change, seconds):
                assert change >= 1
                assert seconds >= 0
    times = [moment.seconds for moment in moments if isinstance(moment, AfterTime)]
    assert {int(seconds / 2) for seconds in times} == set(range(10)), "each tenth of it"
    assert sum(isinstance(moment, AfterRanks) for moment in moments) > 100
    assert {moment.steps for moment in moments if isinstance(moment, AfterSteps)} >= {1, 10, 20}
    saves = [moment for moment in moments if isinstance(moment, AtSave)]
    assert {moment.change for moment in saves} >= {1, 2, 3, 4}
    assert any(moment.seconds == 0 for moment in saves)
    assert any(moment.seconds > 0 for moment in saves)


def test_any_number_of_processes_comes_up() -> None:
    assert {draw_processes(0, launch, 4) for launch in range(100)} == {1, 2, 3, 4}
    assert {draw_processes(0, launch, 1) for launch in range(100)} == {1}
