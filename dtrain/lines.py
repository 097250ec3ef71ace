"""Appends lines to a file. What finds no room on the disk waits in memory, in order; nothing is torn or dropped."""

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from shard_tools.atomic import sync_directory
from shard_tools.errors import UserError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MOST_WAITING_BYTES = 64 * 2**20


class Lines:
    """A JSON Lines file. A line is with the kernel, and outlives this process, before `add` returns, if there is room.

    Opened anew for each line, so that a folder that has vanished is noticed. May be used by several threads.
    """

    def __init__(self, path: Path) -> None:
        """The file is made by the first line."""
        self.path = path
        self._waiting = b""
        self._told = False
        self._lock = threading.Lock()

    def add(self, line: dict[str, Any]) -> None:
        """Append a line. Raises UserError if the file can't be written for any other reason than a full disk."""
        with self._lock:
            self._waiting += json.dumps(line).encode() + b"\n"
            try:
                self._write()
            except OSError as error:
                if error.errno not in NO_ROOM or len(self._waiting) > MOST_WAITING_BYTES:
                    raise UserError(
                        f"{self.path}: can't be written: {error.strerror}; the run folder has to stay where it is, on "
                        "a disk with room; mend that, then run the same command again"
                    ) from None
                if not self._told:
                    self._told = True
                    self._warn(f"{error.strerror}: lines wait in memory until there is room")

    def end(self) -> int:
        """The size of the file in bytes, with the lines that wait."""
        with self._lock:
            size = self.path.stat().st_size if self.path.exists() else 0
            return size + len(self._waiting)

    def sync(self) -> None:
        """Make all lines so far survive a power cut. Raises OSError if there is no room."""
        with self._lock:
            self._write()
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        sync_directory(self.path.parent)

    def end_torn_line(self) -> None:
        """Give a line that a kill tore a line of its own."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    file.write(b"\n")

    def _write(self) -> None:
        if not self._waiting:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(descriptor, self._waiting) :]
        except OSError as error:
            error.filename = str(self.path)
            raise
        finally:
            os.close(descriptor)
        if self._told:
            self._told = False
            self._warn("is written again, without a gap")

    def _warn(self, what: str) -> None:
        print(f"{self.path}: {what}", file=sys.stderr, flush=True)
