"""One attempt at a run: starts its launcher once, and says by the exit status whether to start it again.

    python -m launch.outcome -- \\
        accelerate launch --config_file accelerate_config.yaml -m dtrain train configs/demo.yaml --run runs/demo

The launcher's own status does not say it: it is 1 after a preemption in which all went well. What came of an attempt is
in the run folder, which the command has to name with --run.

| status | the run | whoever starts it |
|---|---|---|
| 0 | is done | is finished |
| 75 | was told to stop, or got on and then broke off | starts it again |
| 69 | broke off with no new checkpoint | starts it again, but not for ever |
| 1 | failed with no new checkpoint, or could not begin | stops: a new start would meet the same |
| 2, 126, 127 | has a command that can't be started | stops |
| 130 | was stopped by Ctrl-C | stops |

SIGTERM, SIGHUP and SIGUSR1 to this process reach the launcher as one SIGTERM, Ctrl-C as it is. Launchers of several
machines wait for each other after a preemption, minutes for one that is gone: this one is ended after a minute.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from launch.child import Child, cannot_start
from launch.launcher import Launcher
from launch.stderr import write_line

DONE, AGAIN, NO_PROGRESS, FAILED, INTERRUPTED = 0, os.EX_TEMPFAIL, os.EX_UNAVAILABLE, 1, 128 + signal.SIGINT

LINGER_SECONDS = 60.0
LOOK_EVERY_SECONDS = 1.0

NOT_TWICE = ("--fresh", "--from-stage")

USAGE = "python -m launch.outcome -- LAUNCHER … -m dtrain train CONFIG … --run RUN"

say = partial(write_line, "launch.outcome")


class Status(NamedTuple):
    """What status.json says."""

    written: tuple[int, int] | None
    """What tells one from the next; None if there is none."""
    state: str
    """Empty if there is none that can be read."""
    reason: str


class Progress(NamedTuple):
    """How far a training has come in an attempt, in steps."""

    began: int | None
    """None if it did not begin."""
    saved: int
    """By the newest checkpoint; 0 if there is none."""


def main() -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(f"usage: {USAGE}\n\n{__doc__}")
        return 0
    command, run, mistake = parse(words)
    if mistake:
        say(mistake)
        return 2
    before, told_before = read_status(run), _size_of_events(run)
    try:
        child = Child(command)
    except OSError as error:
        say(f"{command[0]} can't be started: {error.strerror}")
        return cannot_start(error)
    told_by = _wait(child, run, before)
    progress = read_progress(run, told_before)
    status, meaning = judge(before, read_status(run), progress, told_by=told_by, exit_status=child.exit_status)
    say(f"{run}: {meaning}: exit status {status}")
    return status


def parse(words: Sequence[str]) -> tuple[list[str], Path, str]:
    """The command after `--`, the run folder that it names, and what is wrong with it; empty if nothing is."""
    command = list(words[1:])
    runs = [following for word, following in pairwise(command) if word == "--run"]
    runs += [word.removeprefix("--run=") for word in command if word.startswith("--run=")]
    repeated = [word for word in command if word.split("=", 1)[0] in NOT_TWICE]
    mistake = ""
    if not command or words[0] != "--":
        mistake = f"expected a launcher after --, as in: {USAGE}"
    elif repeated:
        mistake = (
            f"{repeated[0]} would throw work away at every start; start the run with it once, without this program"
        )
    elif len(runs) != 1:
        mistake = f"expected one --run RUN in the command, not {len(runs)}"
    return command, Path(runs[0] if runs else ""), mistake


def judge(
    before: Status, after: Status, progress: Progress, *, told_by: int | None, exit_status: int
) -> tuple[int, str]:
    """The exit status for an attempt, and why in words.

    `told_by`: the signal that we were told to stop by, if any; `exit_status`: the launcher's.
    """
    begun = after.written != before.written
    if after.state == "done" and (begun or exit_status == 0):
        return DONE, "done"
    if told_by == signal.SIGINT:
        return INTERRUPTED, "stopped by Ctrl-C"
    if told_by:
        return AGAIN, "told to stop"
    if begun:
        return _judge_training(after, progress)
    if after.state in ("preempted", "running"):
        return NO_PROGRESS, "ended before the training went on"
    return FAILED, "the training could not begin; the reason is above"


def _judge_training(status: Status, progress: Progress) -> tuple[int, str]:
    if status.state == "preempted":
        return AGAIN, f"preempted by {status.reason}"
    reason = f": {status.reason}" if status.reason else ""
    if progress.began is not None and progress.saved > progress.began:
        return AGAIN, f"broke off after new checkpoints, up to step {progress.saved}{reason}"
    if status.state == "failed":
        return FAILED, f"failed with no new checkpoint{reason}"
    return NO_PROGRESS, f"broke off with no new checkpoint{reason}"


def read_status(run: Path) -> Status:
    """What the run says of itself; what can't be read counts as absent."""
    path = run / "status.json"
    written = None
    with suppress(OSError, ValueError):
        about = path.stat()
        written = about.st_ino, about.st_mtime_ns
        status = json.loads(path.read_text())
        if isinstance(status, dict):
            return Status(written, str(status.get("state", "")), str(status.get("reason", "")))
    return Status(written, "", "")


def read_progress(run: Path, since: int) -> Progress:
    """Of the last start in the part of events.jsonl that begins at byte `since`. A line that a kill cut off is lost."""
    names = [path.name.removeprefix("step-") for path in run.glob("checkpoints/step-*")]
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    began = None
    with suppress(OSError), (run / "events.jsonl").open("rb") as file:
        file.seek(since)
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] in ("start", "resume"):
                    began = int(event["global_step"])
    return Progress(began, saved)


def _size_of_events(run: Path) -> int:
    with suppress(OSError):
        return (run / "events.jsonl").stat().st_size
    return 0


def _wait(child: Child, run: Path, before: Status) -> int | None:
    """Until the launcher has ended, killed if it waits for lost machines; the first signal that told it to stop."""
    launcher = Launcher(child.send_signal, say)
    told_by = None
    preempted_at = None
    while child.is_running():
        number = child.next_signal_within(LOOK_EVERY_SECONDS)
        if number is not None and number != signal.SIGCHLD:
            told_by = told_by or number
            launcher.pass_on(number)
        now = read_status(run)
        if now.state != "preempted" or now.written == before.written:
            preempted_at = None
        elif preempted_at is None:
            preempted_at = time.monotonic()
        elif time.monotonic() - preempted_at > LINGER_SECONDS:
            say(f"preempted {LINGER_SECONDS:.0f} s ago, and the launcher still waits for other machines: ended")
            child.send_signal(signal.SIGKILL)
    return told_by


if __name__ == "__main__":
    raise SystemExit(main())
