"""A command run as a child: every signal for us comes one at a time, to be passed on. Decides nothing itself.

The command gets a process group of its own, so that Ctrl-C and signals to the whole group reach it once, through this
process, and not twice. Should this process be killed, the kernel sends the command SIGTERM (on Linux). All of it also
holds for the first process of a container, to which the kernel hands no signal that it neither handles nor blocks.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class Child:
    """The command. From now on signals to this process wait until `next_signal` is called; ignored ones stay so."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it. Raises OSError if that can't be done; `cannot_start` makes an exit status of it."""
        ignored = {number for number in (signal.SIGINT, *_STOPPING) if signal.getsignal(number) is signal.SIG_IGN}
        self._awaited = {signal.SIGCHLD, signal.SIGINT, *_STOPPING} - ignored
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        prepare = tied_to_us(signal.SIGTERM, mask)
        self._process = subprocess.Popen(command, process_group=0, preexec_fn=prepare)  # noqa: PLW1509

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def next_signal(self) -> int:
        """Waits for a signal to this process; SIGCHLD when the child may have ended."""
        return signal.sigwait(self._awaited)

    def next_signal_within(self, seconds: float) -> int | None:
        """The same, but None after so many seconds."""
        found = signal.sigtimedwait(self._awaited, seconds)
        return found.si_signo if found else None

    def send_signal(self, number: int) -> None:
        """Send it one, unless it has ended."""
        self._process.send_signal(number)

    @property
    def exit_status(self) -> int:
        """Of a child that has ended, as a shell has it: 128 + n after signal n."""
        code: int = self._process.returncode
        return code if code >= 0 else 128 - code


def cannot_start(error: OSError) -> int:
    """The exit status that a shell gives to a command that it can't start."""
    return 127 if isinstance(error, FileNotFoundError) else 126


def tied_to_us(signal_at_our_end: int, mask: Iterable[int]) -> Callable[[], None]:
    """What a child does between fork and exec.

    The kernel takes the end of a thread of ours for that of the parent, and tells the child each time that it passes
    from one to the next. So the thread that calls this has to live as long as the process, or be its only one.
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
