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

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)(?:://|:/|::.*?://)")
_USER_INFO = re.compile(r"//[^/@]+@")
_REFUSED_SCHEMES = {"pipe", "shell", "cmd"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


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

    def absolute(self) -> "Storage":
        """The same place, for processes that are elsewhere."""

    def writing(self, name: str) -> Any:
        """Context manager of a binary file; the object appears, whole, only if the block ends without an exception."""

    def write(self, name: str, data: bytes | str) -> None:
        """Write a small object whole; text is encoded as UTF-8."""

    def upload(self, name: str, source: Path) -> None:
        """Write an object that is the same as the local file `source`."""

    def settle(self) -> None:
        """Make the names of all objects written so far survive a power cut, before one that vouches for them."""

    def reading(self, name: str) -> Any:
        """Context manager of a binary file that can seek."""

    def read(self, name: str) -> bytes:
        """All bytes of an object."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of an object from `offset` on; fewer where it ends before."""

    def size(self, name: str) -> int:
        """Its size in bytes."""

    def names(self, folder: str = "") -> set[str]:
        """Names of the objects directly in a folder; empty where there is no such folder."""

    def folders(self) -> set[str]:
        """Names of the folders directly in it; empty where there is no such place."""

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

    def absolute(self) -> "LocalStorage":
        return LocalStorage(self.root.absolute())

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

    def upload(self, name: str, source: Path) -> None:
        with self.writing(name) as file, source.open("rb") as data:
            shutil.copyfileobj(data, file, 2**20)
        sync_directory((self.root / name).parent)

    def settle(self) -> None:
        sync_directory(self.root)

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        with (self.root / name).open("rb") as file:
            yield file

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with (self.root / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def names(self, folder: str = "") -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.root / folder) if entry.is_file()}
        except FileNotFoundError:
            return set()

    def folders(self) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.root) if entry.is_dir()}
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
        return without_credentials(self.url)

    def path(self, name: str) -> str:
        return f"{self.location}/{name}" if name else self.location

    def absolute(self) -> "RemoteStorage":
        return self

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with tempfile.NamedTemporaryFile(prefix="shard-tools-") as file:
                yield file
                sent = file.tell()
                file.flush()
                self._put(name, Path(file.name), sent)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: {name} cannot be prepared there: {error.strerror}; "
                "set TMPDIR to a folder with room for one shard for each worker"
            ) from None

    def upload(self, name: str, source: Path) -> None:
        self._put(name, source, source.stat().st_size)

    def write(self, name: str, data: bytes | str) -> None:
        content = data.encode() if isinstance(data, str) else data
        self._call(name, "written", lambda fs, path: fs.pipe_file(path, content))

    def settle(self) -> None:
        """Nothing to do: an object that is there stays there."""

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """The object is fetched to a temporary file first, in one request."""
        with tempfile.NamedTemporaryFile(prefix="shard-tools-") as file:
            self._call(name, "read", lambda fs, path: fs.get_file(path, file.name))
            yield file

    def read(self, name: str) -> bytes:
        return bytes(self._call(name, "read", lambda fs, path: fs.cat_file(path)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return bytes(self._call(name, "read", lambda fs, path: fs.cat_file(path, start=offset, end=offset + size)))

    def request(self, name: str, start: int | None = None, stop: int | None = None, *, seconds: float) -> bytes:
        """Bytes `start` to `stop` of an object, or all of it, as one request gives them, for callers that try again.

        The answer may be shorter, or the whole object where the server knows no ranges. Raises what the
        implementation raises, and TimeoutError after `seconds` where that is asynchronous; the text of an error may
        hold what `without_credentials` takes out.
        """
        fs, root = self._fs_and_root
        if not fs.async_impl:
            return bytes(fs.cat_file(f"{root}/{name}", start=start, end=stop))
        from fsspec.asyn import sync

        return bytes(sync(fs.loop, fs._cat_file, f"{root}/{name}", start=start, end=stop, timeout=seconds))

    def size(self, name: str) -> int:
        def ask(fs: Any, path: str) -> int:
            fs.invalidate_cache()
            return int(fs.info(path)["size"])

        return int(self._call(name, "read", ask))

    def names(self, folder: str = "") -> set[str]:
        return self._entries(folder, "file")

    def folders(self) -> set[str]:
        return self._entries("", "directory")

    def _entries(self, folder: str, kind: str) -> set[str]:
        def ask(fs: Any, path: str) -> set[str]:
            fs.invalidate_cache()
            entries = fs.ls(path, detail=True)
            return {entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == kind}

        try:
            found: set[str] = self._call(folder, "listed", ask)
        except FileNotFoundError:
            return set()
        return found

    def _put(self, name: str, source: Path, size: int) -> None:
        self._call(name, "written", lambda fs, path: fs.put_file(str(source), path))
        arrived = self.size(name)
        if arrived != size:
            raise UserError(f"{self.path(name)}: {arrived:,} of {size:,} bytes arrived; run the same command again")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._call(name, "removed", lambda fs, path: fs.rm_file(path))

    def remove_folder(self, folder: str) -> None:
        def remove(fs: Any, path: str) -> None:  # one by one: a path given to rm() may be taken for a pattern
            fs.invalidate_cache()
            for file in fs.find(path):
                fs.rm_file(file)

        with suppress(FileNotFoundError):
            self._call(folder, "removed", remove)

    @cached_property
    def _fs_and_root(self) -> tuple[Any, str]:
        import fsspec

        scheme = self.url.partition("://")[0]
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(scheme)
            way_out = f"pip install 'dtrain[{extra}]'" if extra else "install the fsspec package for this scheme"
            raise UserError(f"{self.location}: {scheme}:// cannot be used: {error}; {way_out}") from None
        return fs, root.rstrip("/")

    def _call(self, name: str, done: str, function: Callable[[Any, str], Any]) -> Any:
        try:
            fs, root = self._fs_and_root
            return function(fs, f"{root}/{name}" if name else root)
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # implementations raise their libraries' own
            reason = without_credentials(str(error)) or type(error).__name__
            raise UserError(
                f"{self.path(name)}: cannot be {done}: {reason}; check the address, the network and the credentials"
            ) from None

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}


def without_credentials(text: str) -> str:
    """The text, for messages, without the user and password of the URLs in it."""
    return _USER_INFO.sub("//***@", text)


def open_storage(location: str | Path) -> LocalStorage | RemoteStorage:
    """The storage at a path or URL. Nothing is read or written yet. Raises UserError for what is neither."""
    text = str(location)
    match = _URL.match(text)
    if match is None:
        return LocalStorage(Path(location))
    scheme, rest = match[1].lower(), text[len(match[0]) :]
    if scheme in _REFUSED_SCHEMES:
        raise UserError(f"{text}: {scheme}: runs a command and is refused; give a path or the URL of a folder")
    if "::" in match[0] or not match[0].endswith("://") or not rest.strip("/"):
        raise UserError(f"{text}: neither a path nor the URL of a folder; expected something like s3://bucket/folder")
    if scheme == "file":
        if not rest.startswith("/"):
            raise UserError(f"{text}: expected file:// and an absolute path, such as file:///data/shards")
        return LocalStorage(Path(rest))
    return RemoteStorage(f"{scheme}://{rest.rstrip('/')}")
