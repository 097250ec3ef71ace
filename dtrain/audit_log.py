"""Writes down which samples each step consumed, on each process: RUN/audit/rank-R.jsonl. `dtrain.audit` reads it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dtrain.data.order import Position
from shard_tools.errors import UserError


class AuditLog:
    """The file of one process; a line is with the kernel, and outlives the process, before its step goes on."""

    def __init__(self, folder: Path, rank: int, processes: int, start: int) -> None:
        """`start` counts the starts of the run from 0. A line that a kill tore is ended, so that it stays alone."""
        self._start, self._processes = start, processes
        self._path = folder / f"rank-{rank}.jsonl"
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b", buffering=0)
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":
                    self._file.write(b"\n")

    def add(self, position: Position, keys: Sequence[str], replaced: Mapping[str, str | None]) -> None:
        """Note the keys of this process's rows in the step from `position` on, and which stand in for which."""
        line = {
            "start": self._start,
            "processes": self._processes,
            "stage": position.stage,
            "epoch": position.epoch,
            "step": position.step,
            "keys": keys,
        }
        if replaced:
            line["replaced"] = dict(replaced)
        with self._explained():
            self._file.write(json.dumps(line).encode() + b"\n")

    def sync(self) -> None:
        """Make all lines survive a power cut."""
        with self._explained():
            os.fsync(self._file.fileno())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written: {error.strerror}; make room, or go on without --audit"
            ) from None
