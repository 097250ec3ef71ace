"""Writes down which samples each step consumed, on each process: RUN/audit/rank-R.jsonl. `dtrain.audit` reads it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dtrain.data.order import Position
from dtrain.lines import Lines
from shard_tools.errors import UserError


class AuditLog:
    """The file of one process; a line is with the kernel, and outlives the process, before its step goes on.

    Where there is no room on the disk lines wait in memory, and no checkpoint counts on them: `sync` says so.
    """

    def __init__(self, folder: Path, rank: int, processes: int, start: int) -> None:
        """`start` counts the starts of the run from 0. A line that a kill tore is ended, so that it stays alone."""
        self._start, self._processes = start, processes
        self._lines = Lines(folder / f"rank-{rank}.jsonl")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines.end_torn_line()
        except OSError as error:
            raise UserError(
                f"{self._lines.path}: can't be written: {error.strerror}; mend that, or go on without --audit"
            ) from None

    def add(self, position: Position, keys: Sequence[str], replaced: Mapping[str, str | None]) -> None:
        """Note the keys of this process's rows in the step from `position` on, and which stand in for which."""
        line = {
            "start": self._start,
            "processes": self._processes,
            "stage": position.stage,
            "epoch": position.epoch,
            "step": position.step,
            "keys": list(keys),
        }
        if replaced:
            line["replaced"] = dict(replaced)
        self._lines.add(line)

    def sync(self) -> None:
        """Make all lines survive a power cut. Raises OSError if there is no room."""
        self._lines.sync()
