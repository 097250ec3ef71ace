"""Where a command that looks at shards leaves its files: a local folder, tried before the long work begins."""

import re
import tempfile
from pathlib import Path

from shard_tools.atomic import write_atomically
from shard_tools.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")


def prepare_folder(folder: Path) -> None:
    """Make the folder if it is missing. Raises UserError where nothing can be written into it."""
    if _URL.match(str(folder)):
        raise UserError(f"--out {folder}: expected a folder on this machine; write there, then copy")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written: {error.strerror}; name another folder") from None


def write_output(path: Path, data: bytes | str) -> None:
    """Write a file whole. Raises UserError that names it where that fails, as on a full disk."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; make room, or name another --out") from None
