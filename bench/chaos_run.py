"""One launch of a training under its killer: waits for the moment, strikes, waits for the end. Notes what it sees."""

import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil

from bench.chaos_plan import AfterRanks, AfterSteps, AfterTime, AtSave, Kill, Moment
from bench.training import LAUNCH_TIMEOUT, Launched, Member, Training

LOOK_SECONDS = 0.002
LEAVE_SECONDS = 40.0
"""Launchers give the processes of a training 30 s to leave."""


class Run(NamedTuple):
    """What is trained."""

    training: Training
    config: Path


@dataclass
class Launch:
    """What was seen of one launch."""

    number: int
    processes: int
    log: Path
    kill: Kill | None
    """What was to come; None for a launch that is let alone."""
    struck: str = ""
    """Who was hit; empty if the launch ended before its kill."""
    victim: str = ""
    """Its kind: "rank", "launcher", "decoder", or "all"."""
    struck_after: float = 0.0
    """Seconds since the launch."""
    struck_at_step: int = 0
    """The last step that was logged then; 0 if this launch had not begun."""
    begun_from: str = ""
    """The checkpoint that it resumed from, or "the beginning"; empty if it did not come so far."""
    repeated_steps: int = 0
    seconds: float = 0.0
    """Until all of its processes were gone: since the kill, or since the launch."""
    left_behind: list[str] = field(default_factory=list)
    """Processes that did not go, and were ended."""
    state_before: str = ""
    """What status.json said when it was launched."""
    status: dict[str, Any] = field(default_factory=dict)
    """status.json, if this launch wrote it."""
    exit_status: int | None = None
    output: str = ""

    @property
    def blow(self) -> str:
        """The signals that were sent, by name."""
        return self.kill.blow if self.kill and self.struck else ""

    def __str__(self) -> str:
        if not self.struck:
            return "let alone"
        return f"{self.blow} to {self.struck} at {self.struck_after:.2f} s, step {self.struck_at_step}"


def launch_under(kill: Kill | None, run: Run, number: int, processes: int, log: Path) -> Launch:
    """Launch the training, let it suffer, and see to it that none of its processes is left in the end."""
    training = run.training
    seen = Launch(number, processes, log, kill, state_before=training.status().get("state", ""))
    stamp, logged = _status_stamp(training), training.last_step()
    began = time.time()
    launched = Launched.start(run.config, log, processes=processes)
    try:
        clock = time.monotonic()
        if kill and _moment_comes(kill.moment, training, launched, began):
            _strike(kill, launched, seen, clock)
            seen.struck_at_step = training.last_step() if _start(training, began) else 0
        if seen.struck:
            clock += seen.struck_after
        _wait_until_gone(launched, clock + (LEAVE_SECONDS if seen.struck else LAUNCH_TIMEOUT))
        seen.seconds = time.monotonic() - clock
        seen.left_behind = [f"{member}: {_look_of(member)}" for member in launched.members()]
    finally:
        _end(launched)
    if start := _start(training, began):
        seen.begun_from = start.get("checkpoint", "the beginning")
        seen.repeated_steps = start.get("repeated_steps", logged)
    if _status_stamp(training) != stamp:
        seen.status = training.status()
    seen.exit_status = launched.process.returncode
    seen.output = launched.output
    return seen


def _moment_comes(moment: Moment, training: Training, launched: Launched, began: float) -> bool:
    """Wait for the moment of the kill; False if the launch ended before, or takes too long."""
    clock = time.monotonic()
    names, changes = training.checkpoints(), 0
    base: int | None = None
    ranks: float | None = None
    while launched.process.poll() is None and time.monotonic() < clock + LAUNCH_TIMEOUT:
        match moment:
            case AfterTime(seconds):
                if time.monotonic() - clock >= seconds:
                    return True
            case AfterRanks(seconds):
                if ranks is None and any(member.role == "rank" for member in launched.members()):
                    ranks = time.monotonic()
                if ranks is not None and time.monotonic() - ranks >= seconds:
                    return True
            case AfterSteps(steps):
                if base is None and (start := _start(training, began)):
                    base = start["global_step"]
                if base is not None and training.last_step() >= base + steps:
                    return True
            case AtSave(change, seconds):
                found = training.checkpoints()
                changes, names = changes + (found != names), found
                if changes == change:
                    time.sleep(seconds)
                    return True
        time.sleep(LOOK_SECONDS)
    return False


def _strike(kill: Kill, launched: Launched, seen: Launch, clock: float) -> None:
    """Send the signals; it counts only if somebody was there to get the first one."""
    hit = [member for member in _targets(kill, launched.members()) if _send(member, kill.signals[0])]
    if not hit:
        return
    seen.struck = f"all ({len(hit)})" if kill.victim == "all" else str(hit[0])
    seen.victim = "all" if kill.victim == "all" else hit[0].role
    seen.struck_after = time.monotonic() - clock
    for number in kill.signals[1:]:
        time.sleep(kill.pause)
        for member in launched.members() if kill.victim == "all" else hit:
            _send(member, number)
    if kill.victim == "all" and kill.signals[-1] == signal.SIGKILL:
        _end(launched)


def _targets(kill: Kill, members: list[Member]) -> list[Member]:
    """Those of the living that the kill is meant for; the launcher while there are none of them."""
    if kill.victim == "all":
        return Random(kill.choice).sample(members, len(members))
    meant = [member for member in members if member.role == kill.victim]
    meant = meant or [member for member in members if member.role == "launcher"]
    return meant[int(kill.choice * len(meant)) :][:1]


def _send(member: Member, number: signal.Signals) -> bool:
    with suppress(psutil.Error):
        member.process.send_signal(number)
        return True
    return False


def _wait_until_gone(launched: Launched, deadline: float) -> None:
    while launched.process.poll() is None or launched.members():
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _end(launched: Launched) -> None:
    """SIGKILL to all, until none is left: some may be about to start others."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while (members := launched.members()) and time.monotonic() < deadline:
        for member in members:
            _send(member, signal.SIGKILL)
        time.sleep(0.01)
    launched.process.wait(LEAVE_SECONDS)


def _start(training: Training, began: float) -> dict[str, Any] | None:
    """The event with which this launch, and none before, began to train."""
    events = [event for event in training.events("start", "resume") if event["time"] >= began]
    return events[-1] if events else None


def _status_stamp(training: Training) -> tuple[int, int]:
    """Changes whenever status.json is written."""
    try:
        found = (training.folder / "status.json").stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _look_of(member: Member) -> str:
    try:
        return f"{member.process.status()}, {' '.join(member.process.cmdline()[:6])}"
    except psutil.Error:
        return "gone since"
