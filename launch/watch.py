"""Turns a cloud's preemption notice into SIGTERM for a launcher. Never ends, delays or restarts a training otherwise.

    python -m launch.watch -- accelerate launch --config_file accelerate_config.yaml -m dtrain train configs/demo.yaml

runs the command and, beside it, a process that asks the machine's metadata service whether the machine is about to be
taken away (`launch.notices`). When it is, the command gets SIGTERM, once. What is said goes to stderr. The exit status
is that of the command (128 + n after signal n). Nothing that the service does or leaves undone stops the command.

Signals to this process reach the command as `launch.child` says.
"""

import argparse
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from launch.child import Child, cannot_start, tied_to_us
from launch.launcher import Launcher
from launch.notices import NO_NOTICES, options_parser, say


class Arguments(NamedTuple):
    """What the command line asks for; either `command` or `pid` is given."""

    asking: list[str]
    """The options of `launch.notices`."""
    pid: int | None
    command: list[str]


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = parse(sys.argv[1:])
    if arguments.pid is not None:
        return _watch_process(arguments.pid, arguments.asking)
    return _watch_command(arguments.command, arguments.asking)


def parse(words: Sequence[str]) -> Arguments:
    """The options before `--` and the command after it; a mistake ends the process with status 2 and a message."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.watch",
        usage="%(prog)s [options] -- COMMAND ...\n       %(prog)s [options] --pid PID",
        description="Runs COMMAND, and sends it SIGTERM when the cloud announces that this machine is taken away.",
        parents=[options_parser()],
        allow_abbrev=False,
    )
    parser.add_argument("--pid", type=int, help="a launcher that runs already, instead of a command (Linux)")
    cut = list(words).index("--") if "--" in words else len(words)
    command = list(words[cut + 1 :])
    options, unknown = parser.parse_known_args(words[:cut])
    if unknown:
        parser.error(f"what is {' '.join(unknown)}? A command comes after --")
    if (options.pid is None) == (not command):
        parser.error("expected either a command after -- or --pid PID")
    asking = ["--cloud", options.cloud, "--every", str(options.every), "--metadata", options.metadata]
    return Arguments(asking, options.pid, command)


def _watch_command(command: list[str], asking: list[str]) -> int:
    try:
        child = Child(command)
    except OSError as error:
        say(f"{command[0]} can't be started: {error.strerror}")
        return cannot_start(error)
    launcher = Launcher(child.send_signal, say)
    with _asking(asking) as process:
        notices = process
        while child.is_running():
            number = child.next_signal()
            if number != signal.SIGCHLD:
                launcher.pass_on(number)
            elif notices and notices.poll() is not None:
                _heed(notices, launcher)
                notices = None
    return child.exit_status


def _watch_process(pid: int, asking: list[str]) -> int:
    """Wait for the end of a process that is not ours; its exit status stays unknown, so ours is 0."""
    if sys.platform != "linux":
        say("--pid needs Linux")
        return 2
    try:
        process = os.pidfd_open(pid)
        signal.pidfd_send_signal(process, 0)
    except OSError as error:
        say(f"--pid {pid}: {error.strerror}")
        return 2
    try:
        with _asking(asking) as notices:
            streams: list[Any] = [process, notices.stdout] if notices else [process]
            ended, _, _ = select.select(streams, [], [])
            if notices and process not in ended:
                _heed(notices, Launcher(partial(signal.pidfd_send_signal, process), say))
        select.select([process], [], [])
    except KeyboardInterrupt:
        say(f"process {pid} runs on, without notices")
        return 128 + signal.SIGINT
    return 0


@contextmanager
def _asking(options: list[str]) -> "Iterator[subprocess.Popen[str] | None]":
    """A process that prints a notice and ends; None if it can't be started. Signals to our group are not for it."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.notices", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            preexec_fn=tied_to_us(signal.SIGKILL, ()),  # noqa: PLW1509
        )
    except OSError as error:
        say(f"can't ask for notices: {error.strerror}; {NO_NOTICES}")
        yield None
        return
    with process:
        try:
            yield process
        finally:
            process.kill()


def _heed(notices: "subprocess.Popen[str]", launcher: Launcher) -> None:
    """Act on what the asking process, which has ended or is about to, has printed."""
    printed, _ = notices.communicate()
    if printed.strip():
        launcher.stop(printed.strip())
    else:
        say(f"asking for notices has ended with status {notices.returncode}; {NO_NOTICES}")


if __name__ == "__main__":
    raise SystemExit(main())
