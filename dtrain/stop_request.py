"""Notes that this process was told to stop. Acts on nothing, and imports nothing heavy, so that it can come first."""

import os
import signal
import time
from types import FrameType

_PARENT = os.getppid()
"""As early as can be: a launcher that is killed while this process imports would not be missed."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A signal, or the end of the launcher that started this process.

    `accelerate launch` with one process passes no signal on, and a launcher that is killed passes none on either; the
    process would live on unseen. It stops instead when its parent changes.
    """

    def __init__(self) -> None:
        """Install the handlers; after the first signal Ctrl-C ends the process at once."""
        self._signal: signal.Signals | None = None
        self._noted_at: float | None = None
        launched = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys()
        self._parent = _PARENT if launched else None
        for number in SIGNALS:
            signal.signal(number, self._note)

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._signal is not None:
            return self._signal.name
        return "the launcher is gone" if self.launcher_is_gone else None

    @property
    def launcher_is_gone(self) -> bool:
        """Whether the process that started this one has ended."""
        return self._parent is not None and os.getppid() != self._parent

    def seconds_ago(self) -> float:
        """How long ago there was first a reason to stop, as far as that was asked; 0 if there is none."""
        if self._noted_at is None and self.launcher_is_gone:
            self._noted_at = time.monotonic()
        return 0.0 if self._noted_at is None else time.monotonic() - self._noted_at

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._noted_at = time.monotonic()
            self._signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
