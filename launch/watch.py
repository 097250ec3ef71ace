"""Turns a cloud's preemption notice into SIGTERM for a launcher. Never ends, delays or restarts a training otherwise.

    python -m launch.watch -- accelerate launch --config_file accelerate_config.yaml -m dtrain train configs/demo.yaml

runs the command and, beside it, a process that asks the machine's metadata service whether the machine is about to be
taken away (`launch.notices`). When it is, the command gets SIGTERM, once. What is said goes to stderr. The exit status
is that of the command (128 + n after signal n). Nothing that the service does or leaves undone stops the command.

The command gets a process group of its own, so that Ctrl-C and signals to the whole group reach it once, through this
process, and not twice. Should this process be killed, the kernel sends the command SIGTERM (on Linux).
"""

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from launch.notices import NO_NOTICES, options_parser, say

_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


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


class Launcher:
    """A launcher, told to stop once, however often it is said here: a second signal may disturb its leaving."""

    def __init__(self, send: Callable[[int], None]) -> None:
        """`send` gets the number of a signal."""
        self._send = send
        self._told = False

    def stop(self, reason: str) -> None:
        """Send SIGTERM, unless that was done before."""
        if self._told:
            say(f"{reason}: the launcher has been told already")
            return
        self._told = True
        with suppress(ProcessLookupError):
            self._send(signal.SIGTERM)
        say(f"{reason}: SIGTERM sent to the launcher")


def _watch_command(command: list[str], asking: list[str]) -> int:
    ignored = {number for number in (signal.SIGINT, *_STOPPING) if signal.getsignal(number) is signal.SIG_IGN}
    handled = {signal.SIGCHLD, signal.SIGINT, *_STOPPING} - ignored
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    try:
        child = subprocess.Popen(command, process_group=0, preexec_fn=_tied_to_us(signal.SIGTERM, mask))  # noqa: PLW1509
    except OSError as error:
        say(f"{command[0]} can't be started: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    launcher = Launcher(child.send_signal)
    with _asking(asking) as process:
        notices = process
        while child.poll() is None:
            number = signal.sigwait(handled)
            if number == signal.SIGINT:
                child.send_signal(number)
            elif number != signal.SIGCHLD:
                launcher.stop(signal.Signals(number).name)
            elif notices and notices.poll() is not None:
                _heed(notices, launcher)
                notices = None
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


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
                _heed(notices, Launcher(partial(signal.pidfd_send_signal, process)))
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
            preexec_fn=_tied_to_us(signal.SIGKILL, ()),  # noqa: PLW1509
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


def _tied_to_us(signal_at_our_end: int, mask: Iterable[int]) -> Callable[[], None]:
    """What a child does between fork and exec.

    The kernel takes the end of a thread of ours for that of the parent, and tells the child each time that it passes
    from one to the next. So this process has one thread, and asks for notices in another process.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal_at_our_end)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal_at_our_end)

    return prepare


if __name__ == "__main__":
    raise SystemExit(main())
