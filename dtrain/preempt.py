"""When to stop early: signals are noted, and all processes agree at a step boundary. Never saves anything itself."""

import os
import signal
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

from shard_tools.errors import UserError

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


class AgreedError(UserError):
    """What one process could not go on with, or several; raised by all of them, with one message."""


@dataclass(frozen=True)
class Agreement:
    """What all processes know together: whether one of them was told to stop, and the sums of their counts.

    Nothing is known right after `now`, or at the beginning: no counts then.
    """

    stop: bool = False
    counts: tuple[int, ...] = ()


class Vote:
    """Lets all processes do the same after the same step, although a signal or a failure meets only some of them.

    Each step boundary casts a vote over a CPU process group and reads the one cast a step before, which has had a
    whole step to arrive: nothing waits for the network and nothing for the device. The price is one more step.

    A process that can't go on says so to `fail` and still takes part in every exchange, with nothing of its own, until
    the vote is read; then all raise the same error, and none is left waiting for one that is gone.
    """

    def __init__(self, request: StopRequest | None = None) -> None:
        """Assumes that the default process group, if there is to be one, is initialised."""
        self._request = request
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._votes = torch.zeros(0, dtype=torch.int64)
        self._pending: dist.Work | None = None
        self._failure: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether this process can't go on."""
        return self._failure is not None

    def fail(self, error: Exception) -> None:
        """Note that this process can't go on; raises the error at once if it is the only one."""
        if self._group is None:
            raise error
        self._failure = self._failure or error

    def agreed(self, *counts: int) -> Agreement:
        """What all said a step ago. To be called equally often, with equally many counts, by every process.

        Raises AgreedError if one of them had failed.
        """
        if self._group is None:
            return Agreement(self._wants_to_stop(), counts)
        agreement = self._read() if self._pending is not None else Agreement()
        if not agreement.stop:
            self._cast(counts)
        return agreement

    def now(self, *counts: int) -> Agreement:
        """What all say now; waits for the last of them. To be called before what can't be taken back.

        Raises AgreedError if one of them has failed.
        """
        if self._group is None:
            return Agreement(self._wants_to_stop(), counts)
        self.settle()
        self._cast(counts)
        return self._read()

    def settle(self) -> None:
        """Wait for a vote that is still under way, before the process group is taken down."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def _wants_to_stop(self) -> bool:
        return self._request is not None and self._request.reason is not None

    def _cast(self, counts: tuple[int, ...]) -> None:
        self._votes = torch.tensor([self._wants_to_stop(), self.failed, *counts], dtype=torch.int64)
        self._pending = dist.all_reduce(self._votes, group=self._group, async_op=True)

    def _read(self) -> Agreement:
        self.settle()
        stop, failed, *counts = self._votes.tolist()
        if failed:
            self._raise_together()
        return Agreement(stop > 0, tuple(counts))

    def _raise_together(self) -> NoReturn:
        """Every process raises the messages of those that failed, each message once."""
        own = None
        if self._failure is not None:
            own = str(self._failure) if isinstance(self._failure, UserError) else repr(self._failure)
        messages: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(messages, own, group=self._group)
        ranks: dict[str, list[str]] = {}
        for rank, message in enumerate(messages):
            if message is not None:
                ranks.setdefault(message, []).append(str(rank))
        told = [f"process {', '.join(having)}: {message}" for message, having in ranks.items()]
        raise AgreedError("\n".join(told)) from self._failure
