"""Lets all processes do the same after the same step. Never waits for a device, and never saves anything itself."""

from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from dtrain.stop_request import StopRequest
from shard_tools.errors import UserError


class AgreedError(UserError):
    """What one process could not go on with, or several; raised by all of them, with one message."""


def message_of(error: Exception) -> str:
    """What to say of an error: of a user's mistake its text, of any other its type as well."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Agreement:
    """What all processes know together."""

    stop: bool
    """One of them was told to stop."""
    absent: bool
    """One of them has nothing for this step, because it was told to stop while it waited for data."""
    save: bool
    """One of them asks for a checkpoint."""
    counts: tuple[tuple[int, ...], ...]
    """What each counted, by process."""


class Vote:
    """An exchange over a CPU process group, although a signal or a failure meets only some of the processes.

    Each step casts a vote when its data is there and reads it before it changes anything: the exchange takes place
    beside the computation, nothing waits for the device, and a step that lacks a process's part can still be dropped
    by all. A process that can't go on says so to `fail` and still takes part in the exchanges of its step, with nothing
    of its own; when the vote is read all raise the same error, and none is left waiting for one that is gone.
    """

    def __init__(self, request: StopRequest | None = None, longest: timedelta | None = None) -> None:
        """Assumes that the default process group, if there is to be one, is initialised.

        `longest` is how long a process waits for the others (default: torch's).
        """
        self._request = request
        self._group = dist.new_group(backend="gloo", timeout=longest) if dist.is_initialized() else None
        self._votes: list[Tensor] = []
        self._pending: dist.Work | None = None
        self._failure: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether this process can't go on."""
        return self._failure is not None

    def fail(self, error: Exception) -> None:
        """Note that this process can't go on; raises the error if it is alone."""
        if self._group is None:
            raise error
        if self._failure is None:
            self._failure = error

    def cast(self, *counts: int, absent: bool = False, save: bool = False) -> None:
        """Begin an exchange. To be called equally often, with equally many counts, by every process."""
        own = torch.tensor([self.wants_to_stop, self.failed, absent, save, *counts], dtype=torch.int64)
        if self._group is None:
            self._votes = [own]
            return
        self._votes = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        self._pending = dist.all_gather(self._votes, own, group=self._group, async_op=True)

    def read(self) -> Agreement:
        """What was cast last, once all have cast it. Raises AgreedError on all if one of them had failed."""
        self.settle()
        votes = [tuple(vote.tolist()) for vote in self._votes]
        if any(failed for _, failed, *_ in votes):
            self._raise_together()
        stops, _, absents, saves, *_ = zip(*votes, strict=True)
        return Agreement(any(stops), any(absents), any(saves), tuple(vote[4:] for vote in votes))

    def now(self) -> Agreement:
        """Cast and read: waits for the last of them. Raises AgreedError on all if one of them has failed."""
        self.cast()
        return self.read()

    def same_for_all(self, value: str) -> bool:
        """Whether all processes have the same value; to be called by every process."""
        return len(set(self.gather(value))) == 1

    def gather(self, value: object) -> list[object]:
        """What each process has, by rank; to be called by every process, with something that can be pickled."""
        if self._group is None:
            return [value]
        values: list[object] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    def settle(self) -> None:
        """Wait for a vote that is still under way, before the process group is taken down."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    @property
    def wants_to_stop(self) -> bool:
        """Whether this process was told to stop."""
        return self._request is not None and self._request.reason is not None

    def _raise_together(self) -> NoReturn:
        """Every process raises the messages of those that failed, each message once."""
        gathered = self.gather(message_of(self._failure) if self._failure is not None else None)
        ranks: dict[object, list[str]] = {}
        for rank, message in enumerate(gathered):
            if message is not None:
                ranks.setdefault(message, []).append(str(rank))
        lines = [
            str(message) if len(having) == len(gathered) else f"process {', '.join(having)}: {message}"
            for message, having in ranks.items()
        ]
        raise AgreedError("\n".join(lines)) from self._failure
