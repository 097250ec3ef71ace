"""A folder that takes files under names that nobody vouches for: each whole, none outside, none over another.

Until it is finished, its `.unpack/` holds a state, which tells what goes into the folder, and the files not yet whole.
"""

import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from shard_tools.atomic import PARTIAL_SUFFIX, sync_directory, write_atomically
from shard_tools.errors import UserError

UNFINISHED = ".unpack"
STATE = "state.json"


def plain_path(path: str) -> PurePosixPath:
    """The path as one below a folder. Raises ValueError for any that could lead out of it, on any system."""
    plain = PurePosixPath(path)
    if (
        not plain.parts
        or plain.is_absolute()
        or ".." in plain.parts
        or plain.parts[0] == UNFINISHED
        or plain.parts[0][1:2] == ":"
        or "\\" in path
        or "\0" in path
        or not _is_file_name(path)
    ):
        raise ValueError(
            f"the path {path!r} is refused: expected one that stays in the folder, with '/' between its names and "
            "without '..', backslashes or a drive"
        )
    return plain


def _is_file_name(path: str) -> bool:
    try:
        return bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


def begin_filling(root: Path, content: Mapping[str, object]) -> bool:
    """Make the folder ready to take files; returns whether an earlier run began to fill it.

    `content` identifies what goes into it. Raises UserError if the folder holds anything else.
    """
    state = root / UNFINISHED / STATE
    document = json.dumps(content) + "\n"
    with _writing_errors(root):
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: expected a folder to write to, or a name not yet taken; it is a file")
        if state.exists():
            if state.read_text(encoding="utf-8") != document:
                raise UserError(f"{root}: another data set is being unpacked there; choose another OUT, or delete it")
            return True
        if root.exists() and any(path.name != UNFINISHED for path in root.iterdir()):
            raise UserError(
                f"{root}: expected an empty or a new folder, or one that this command began; it holds other files "
                "(if this command has finished there, there is nothing to do); choose another OUT"
            )
        (root / UNFINISHED).mkdir(parents=True, exist_ok=True)
        write_atomically(state, document)
    return False


def finish_filling(root: Path) -> None:
    """Make all files durable, then remove the state, which comes last."""
    with _writing_errors(root):
        os.sync()  # once for all files, before the state that doubts them goes
        unfinished = root / UNFINISHED
        for leftover in unfinished.glob(f"*{PARTIAL_SUFFIX}"):
            leftover.unlink()
        shutil.rmtree(unfinished)
        sync_directory(root)


class FilledFolder:
    """Writes files into a folder that is being filled. Each process has an object of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partial = root / UNFINISHED / f"{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
        self._folders = {PurePosixPath()}

    def write(self, path: PurePosixPath, data: bytes) -> bool:
        """Write a file whole; False if it was there with the same bytes.

        Raises ValueError if something else is there, a symbolic link on the way to it included, and UserError if the
        folder cannot be written.
        """
        with _writing_errors(self._root):
            self._make_folder(path.parent)
            target = self._root / path
            if _holds(target, data):
                return False
            try:
                self._partial.write_bytes(data)
                os.link(self._partial, target)  # unlike a rename, never replaces what another process wrote
            except FileExistsError:
                return False if _holds(target, data) else self.write(path, data)
            finally:
                self._partial.unlink(missing_ok=True)
        return True

    def _make_folder(self, folder: PurePosixPath) -> None:
        if folder in self._folders:
            return
        for step in (*reversed(folder.parents), folder):
            if step in self._folders:
                continue
            place = self._root / step
            with suppress(FileExistsError):
                place.mkdir()
            if not stat.S_ISDIR(place.lstat().st_mode):
                raise ValueError(f"{place}: expected a folder there; it is a file or a symbolic link; remove it")
            self._folders.add(step)


def _holds(target: Path, data: bytes) -> bool:
    """Whether the file is there with these bytes. Raises ValueError if something else is."""
    try:
        status = target.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISREG(status.st_mode):
        if status.st_size == len(data) and target.read_bytes() == data:
            return True
        if status.st_size == 0:  # it lost its content with the power
            target.unlink()
            return False
    raise ValueError(
        f"{target}: is there already with other content: another sample has the same path, or it was changed since; "
        "remove it if it was changed"
    )


@contextmanager
def _writing_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: cannot write there ({error.strerror or error}); expected a folder that you may "
            "write to, on a disk with room; mend that and run the same command again"
        ) from None
