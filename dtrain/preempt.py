"""When to stop early: signals are noted, and all processes agree at a step boundary. Never saves anything itself."""

import os
import signal
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Notes that this process was told to stop: by a signal, or because the launcher that started it is gone.

    `accelerate launch` with one process passes no signal on, and a launcher that is killed passes none on either; the
    process would live on unseen. It stops instead when its parent changes.
    """

    def __init__(self) -> None:
        """Install the handlers; after the first signal Ctrl-C ends the process at once."""
        self._signal: signal.Signals | None = None
        launched = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys()
        self._parent = os.getppid() if launched else None
        for number in SIGNALS:
            signal.signal(number, self._note)

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._signal is not None:
            return self._signal.name
        if self._parent is not None and os.getppid() != self._parent:
            return "the launcher is gone"
        return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StopVote:
    """Lets all processes stop after the same step although signals reach them at different times, or only some.

    Each step boundary casts a vote over a CPU process group and reads the one cast a step before, which has had a
    whole step to arrive: nothing waits for the network and nothing for the device. The price is one more step.
    """

    def __init__(self, request: StopRequest) -> None:
        """Assumes that the default process group, if there is to be one, is initialised."""
        self._request = request
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._votes = torch.zeros(1)
        self._pending: dist.Work | None = None

    def agreed(self) -> bool:
        """Whether all stop now. To be called equally often by every process."""
        if self._group is None:
            return self._request.reason is not None
        if self._pending is not None:
            self._pending.wait()
            if self._votes.item() > 0:
                self._pending = None
                return True
        self._votes.fill_(float(self._request.reason is not None))
        self._pending = dist.all_reduce(self._votes, group=self._group, async_op=True)
        return False

    def settle(self) -> None:
        """Wait for a vote that is still under way, before the process group is taken down."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
