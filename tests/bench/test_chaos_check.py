"""Which ends of a launch count as a difference, and which belong to its kill."""

from pathlib import Path
from typing import Any

import pytest

from bench.chaos_check import problems_of_launch
from bench.chaos_plan import RunLength, draw_kill
from bench.chaos_run import Launch
from bench.training import ROOT

LOST = {"state": "failed", "reason": "process 1: a decoding process was ended by SIGKILL; if the machine has …"}


def launch(*, victim: str = "", **seen: Any) -> Launch:
    """A launch; with a victim one that was killed, by whatever."""
    kill = draw_kill(0, 1, RunLength(60, 20.0)) if victim else None
    return Launch(1, 2, Path("launch-001.log"), kill, struck=victim, victim=victim, **seen)


@pytest.mark.parametrize(
    "seen",
    [
        launch(status={"state": "done"}, exit_status=0),
        launch(victim="rank", exit_status=1),
        launch(victim="launcher", status={"state": "preempted", "reason": "the launcher is gone"}, exit_status=-9),
        launch(victim="decoder", status=LOST, exit_status=1),
        launch(victim="all", status=LOST, exit_status=-9),
        launch(victim="all", output='Traceback\n  File "/site-packages/torch/distributed/run.py", line 900'),
        launch(victim="all", state_before="running", repeated_steps=5),
        launch(victim="all", state_before="preempted"),
    ],
)
def test_what_follows_from_the_kill_is_no_difference(seen: Launch) -> None:
    assert problems_of_launch(seen) == []


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (launch(victim="rank", seconds=40.2, left_behind=["rank 0: sleeping"]), "left behind after 40 s: rank 0"),
        (launch(seconds=240.0, left_behind=["rank 0: sleeping"]), "left behind after 240 s: rank 0"),
        (launch(victim="all", output=f'  File "{ROOT}/dtrain/loop.py", line 9'), "a traceback of ours"),
        (launch(victim="all", output=f'  File "{ROOT}/shard_tools/tar.py", line 9'), "a traceback of ours"),
        (launch(victim="rank", status=LOST, exit_status=1), "failed: process 1: a decoding process"),
        (launch(victim="decoder", status={"state": "failed", "reason": "disk full"}), "failed: disk full"),
        (launch(status={"state": "done"}, exit_status=1), "ended by itself with exit status 1, done"),
        (launch(status={"state": "running"}, exit_status=0), "ended by itself with exit status 0, running"),
        (launch(exit_status=1), "ended by itself with exit status 1, no status"),
        (launch(victim="all", state_before="preempted", repeated_steps=3), "3 steps are done again"),
    ],
)
def test_what_does_not_follow_from_it_is_one(seen: Launch, problem: str) -> None:
    (found,) = problems_of_launch(seen)
    assert problem in found
