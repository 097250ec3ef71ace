"""When to stop early: signals are noted, and all processes agree at a step boundary. Never saves anything itself."""

import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

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
    """What one process could not go on with, or several; raised by all of them, with one message.

    `step` is the number of the first step that lacks what a failed process should have put into it, None if none does.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Agreement:
    """What all processes know together: whether one of them was told to stop, and the counts of each.

    Nothing is known right after `now`, or at the beginning: no counts then.
    """

    stop: bool = False
    counts: tuple[tuple[int, ...], ...] = ()
    """By process."""


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
        self._votes: list[Tensor] = []
        self._pending: dist.Work | None = None
        self._failure: Exception | None = None
        self._failed_at: int | None = None

    @property
    def failed(self) -> bool:
        """Whether this process can't go on."""
        return self._failure is not None

    def fail(self, error: Exception, step: int | None = None) -> None:
        """Note that this process can't go on, and the step that lacks its part; raises the error if it is alone."""
        if self._group is None:
            raise error
        if self._failure is None:
            self._failure, self._failed_at = error, step

    def agreed(self, *counts: int) -> Agreement:
        """What all said a step ago. To be called equally often, with equally many counts, by every process.

        Raises AgreedError if one of them had failed.
        """
        if self._group is None:
            return Agreement(self.wants_to_stop, (counts,))
        agreement = self._read() if self._pending is not None else Agreement()
        if not agreement.stop:
            self._cast(counts)
        return agreement

    def now(self, *counts: int) -> Agreement:
        """What all say now; waits for the last of them. To be called before what can't be taken back.

        Raises AgreedError if one of them has failed.
        """
        if self._group is None:
            return Agreement(self.wants_to_stop, (counts,))
        self.settle()
        self._cast(counts)
        return self._read()

    def all_say_so(self, seconds: float) -> bool:
        """Whether every process calls this within `seconds`, instead of being in the middle of a step."""
        if self._group is None:
            return True
        self.settle()
        try:
            dist.barrier(group=self._group, async_op=True).wait(timedelta(seconds=seconds))
        except RuntimeError:
            return False
        return True

    def same_for_all(self, value: str) -> bool:
        """Whether all processes have the same value; to be called by every process."""
        if self._group is None:
            return True
        values: list[str] = [""] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return set(values) == {value}

    def settle(self) -> None:
        """Wait for a vote that is still under way, before the process group is taken down."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    @property
    def wants_to_stop(self) -> bool:
        """Whether this process was told to stop."""
        return self._request is not None and self._request.reason is not None

    def _cast(self, counts: tuple[int, ...]) -> None:
        own = torch.tensor([self.wants_to_stop, self.failed, *counts], dtype=torch.int64)
        self._votes = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        self._pending = dist.all_gather(self._votes, own, group=self._group, async_op=True)

    def _read(self) -> Agreement:
        self.settle()
        votes = [tuple(vote.tolist()) for vote in self._votes]
        if any(failed for _, failed, *_ in votes):
            self._raise_together()
        return Agreement(any(stop for stop, *_ in votes), tuple(vote[2:] for vote in votes))

    def _raise_together(self) -> NoReturn:
        """Every process raises the messages of those that failed, each message once."""
        own = None
        if self._failure is not None:
            message = str(self._failure) if isinstance(self._failure, UserError) else repr(self._failure)
            own = (message, self._failed_at)
        gathered: list[tuple[str, int | None] | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(gathered, own, group=self._group)
        ranks: dict[str, list[str]] = {}
        steps = []
        for rank, told in enumerate(gathered):
            if told is not None:
                ranks.setdefault(told[0], []).append(str(rank))
                steps += [] if told[1] is None else [told[1]]
        lines = [
            message if len(having) == len(gathered) else f"process {', '.join(having)}: {message}"
            for message, having in ranks.items()
        ]
        raise AgreedError("\n".join(lines), min(steps, default=None)) from self._failure
