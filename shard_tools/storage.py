"""A place for shards: a folder on disk, or one behind any URL that fsspec knows. Whole objects go in and come out.

Knows nothing of what the objects hold. Names are relative, with "/" between folders.
"""

import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, Protocol

from shard_tools.atomic import PARTIAL_SUFFIX, sync_directory
from shard_tools.errors import UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_REFUSED_SCHEMES = {"pipe", "shell", "cmd"}
_EXTRAS = {"s3": "s3", "s3a": "s3"}


class Storage(Protocol):
    """What the rest asks of a place. Implementations can be pickled, and opened again by another process.

    Where an object is missing, FileNotFoundError is raised; any other failure is an OSError (local) or UserError.
    """

    @property
    def location(self) -> str:
        """Path or URL, for messages."""

    is_local: ClassVar[bool]
    """Whether reading it all again is cheap."""

    def __hash__(self) -> int: ...

    def path(self, name: str) -> str:
        """Where an object lies, for messages."""

    def writing(self, name: str) -> Any:
        """Context manager of a binary file; the object appears, whole, only if the block ends without an exception."""

    def write(self, name: str, data: bytes | str) -> None:
        """Write a small object whole; text is encoded as UTF-8."""

    def settle(self) -> None:
        """Make the names of all objects written so far survive a power cut, before one that vouches for them."""

    def reading(self, name: str) -> Any:
        """Context manager of a binary file that can seek."""

    def read(self, name: str) -> bytes:
        """All bytes of an object."""

    def size(self, name: str) -> int:
        """Its size in bytes."""

    def names(self, folder: str = "") -> set[str]:
        """Names of the objects directly in a folder; empty where there is no such folder."""

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it is there."""


class _FlushedEarly(io.FileIO):
    """A file whose bytes start on their way to the disk as they are written, so that fsync finds little left to do."""

    _STEP = 8 * 2**20
    _told = 0

    def write(self, data: Any) -> int:
        written = super().write(data)
        end = self.tell()
        if end - self._told >= self._STEP and hasattr(os, "posix_fadvise"):
            # On Linux, this advice begins to write what is dirty in the range.
            os.posix_fadvise(self.fileno(), self._told, end - self._told, os.POSIX_FADV_DONTNEED)
            self._told = end
        return written


@dataclass(frozen=True)
class LocalStorage:
    """A folder on a disk that this process sees. Writing fsyncs, then renames (law *Atomic*)."""

    root: Path
    is_local: ClassVar[bool] = True

    @property
    def location(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        return str(self.root / name)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that two processes that write one object (a task that was run twice) do no harm.
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")
        try:
            with io.BufferedWriter(_FlushedEarly(partial, "xb")) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def write(self, name: str, data: bytes | str) -> None:
        with self.writing(name) as file:
            file.write(data.encode() if isinstance(data, str) else data)

    def settle(self) -> None:
        sync_directory(self.root)

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        with (self.root / name).open("rb") as file:
            yield file

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def names(self, folder: str = "") -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.root / folder) if entry.is_file()}
        except FileNotFoundError:
            return set()

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)


@dataclass(frozen=True)
class RemoteStorage:
    """A folder behind a URL, through fsspec. An object is prepared in a temporary file and uploaded when it is whole.

    Object stores have no rename, but show an object only when its upload is complete; an upload that is cut off
    leaves nothing under the name. Retries and time limits are those of the fsspec implementation.
    """

    url: str
    is_local: ClassVar[bool] = False

    @property
    def location(self) -> str:
        return self.url

    def path(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="shard-tools-") as file:
            yield file
            sent = file.tell()
            file.flush()
            self._call(f"{self.path(name)}: cannot be written", lambda fs: fs.put_file(file.name, self.path(name)))
        arrived = self.size(name)
        if arrived != sent:
            raise UserError(f"{self.path(name)}: {arrived:,} of {sent:,} bytes arrived; run the same command again")

    def write(self, name: str, data: bytes | str) -> None:
        content = data.encode() if isinstance(data, str) else data
        self._call(f"{self.path(name)}: cannot be written", lambda fs: fs.pipe_file(self.path(name), content))

    def settle(self) -> None:
        """Nothing to do: an object that is there stays there."""

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """The object is fetched to a temporary file first, in one request."""
        with tempfile.NamedTemporaryFile(prefix="shard-tools-") as file:
            self._call(f"{self.path(name)}: cannot be read", lambda fs: fs.get_file(self.path(name), file.name))
            yield file

    def read(self, name: str) -> bytes:
        return bytes(self._call(f"{self.path(name)}: cannot be read", lambda fs: fs.cat_file(self.path(name))))

    def size(self, name: str) -> int:
        def ask(fs: Any) -> int:
            fs.invalidate_cache()
            return int(fs.info(self.path(name))["size"])

        return int(self._call(f"{self.path(name)}: cannot be read", ask))

    def names(self, folder: str = "") -> set[str]:
        def ask(fs: Any) -> set[str]:
            fs.invalidate_cache()
            entries = fs.ls(self.path(folder), detail=True)
            return {entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file"}

        try:
            found: set[str] = self._call(f"{self.path(folder)}: cannot be listed", ask)
        except FileNotFoundError:
            return set()
        return found

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._call(f"{self.path(name)}: cannot be removed", lambda fs: fs.rm_file(self.path(name)))

    def remove_folder(self, folder: str) -> None:
        with suppress(FileNotFoundError):
            self._call(f"{self.path(folder)}: cannot be removed", lambda fs: fs.rm(self.path(folder), recursive=True))

    @cached_property
    def _fs(self) -> Any:
        import fsspec

        scheme = self.url.partition("://")[0]
        try:
            return fsspec.filesystem(scheme)
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(scheme)
            way_out = f"pip install 'dtrain[{extra}]'" if extra else "install the fsspec package for this scheme"
            raise UserError(f"{self.url}: {scheme}:// cannot be used: {error}; {way_out}") from None

    def _call(self, what: str, function: Callable[[Any], Any]) -> Any:
        try:
            return function(self._fs)
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # implementations raise their libraries' own
            reason = str(error) or type(error).__name__
            raise UserError(f"{what}: {reason}; check the address, the network and the credentials") from None

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}


def open_storage(location: str | Path) -> LocalStorage | RemoteStorage:
    """The storage at a path or URL. Nothing is read or written yet. Raises UserError for a scheme that is no place."""
    match = _URL.match(str(location))
    if match is None:
        return LocalStorage(Path(location))
    scheme = match[1].lower()
    if scheme in _REFUSED_SCHEMES:
        raise UserError(f"{location}: {scheme}: runs a command and is refused; give a path or the URL of a folder")
    if scheme == "file":
        return LocalStorage(Path(str(location)[len(match[0]) :]))
    return RemoteStorage(str(location).rstrip("/"))
