"""Notes that this process was told to stop. Acts on nothing, and imports nothing heavy, so that it can come first."""

import os
import signal
import time
from contextlib import suppress
from types import FrameType

_PARENT = os.getppid()
"""As early as can be: a launcher that is killed while this process imports would not be missed."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
"""What launchers pass on, and what `srun` and terminals send."""


SUBORDINATE = "DTRAIN_SUBORDINATE"
"""A variable in the environment of trainings that are not to outlive the process that started them."""


class StopRequest:
    """A signal, or the end of the launcher that started this process.

    `accelerate launch` with one process passes no signal on, and a launcher that is killed passes none on either; the
    process would live on unseen. It stops instead when its parent changes.
    """

    def __init__(self) -> None:
        """Install the handlers; after the first signal Ctrl-C ends the process at once."""
        self._signal: signal.Signals | None = None
        self._noted_at: float | None = None
        launched = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", SUBORDINATE} & os.environ.keys()
        self._parent = _PARENT if launched else None
        # Handlers wait until the main thread comes back to the interpreter, from an exchange maybe; this does not.
        self._noticed, notice = os.pipe()
        os.set_blocking(self._noticed, False)
        os.set_blocking(notice, False)
        signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._note)

    @property
    def reason(self) -> str | None:
        """Why to stop, or None. Any thread may ask, also while the main one hangs."""
        with suppress(BlockingIOError):
            for number in os.read(self._noticed, 64):
                if number in SIGNALS:
                    self._remember(number)
        if self._signal is not None:
            return self._signal.name
        return "the launcher is gone" if self.launcher_is_gone else None

    @property
    def launcher_is_gone(self) -> bool:
        """Whether the process that started this one has ended."""
        return self._parent is not None and os.getppid() != self._parent

    def seconds_ago(self) -> float:
        """How long ago there was first a reason to stop, as far as that was asked; 0 if there is none."""
        if self.reason is not None and self._noted_at is None:
            self._noted_at = time.monotonic()
        return 0.0 if self._noted_at is None else time.monotonic() - self._noted_at

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._remember(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, number: int) -> None:
        if self._signal is None:
            self._noted_at = time.monotonic()
            self._signal = signal.Signals(number)
