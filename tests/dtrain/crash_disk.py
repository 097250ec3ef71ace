"""What a disk holds after a crash: records the operations of a program below a folder, and replays any of them.

A killed process leaves all that it did. A power cut takes what was not synced: bytes of files, names in folders. What
of it is really gone is up to the file system, so `Disk.tree` gives the extremes.
"""

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

Names = Literal["kept", "fewest", "lost"]
Data = Literal["kept", "half", "zeros", "lost"]
Tree = dict[str, bytes | None]
"""Contents by relative path; None is a folder."""


class Operation(NamedTuple):
    """One change, or what a later one refers to. Paths are relative to the recorded folder."""

    kind: Literal["mkdir", "open", "write", "truncate", "fsync", "rename", "unlink", "rmdir"]
    path: str = ""
    to: str = ""
    handle: int = -1
    number: int = 0
    """Flags of an open, offset of a write, size of a truncation."""
    data: bytes = b""


class Recorder:
    """While the context lasts, notes what any thread of this process does to files below `root`, in order.

    All ways to change files that go through `os` or `open` are seen. That none is missed is shown by replaying the
    record: it must end in the same tree.
    """

    def __init__(self, root: Path, *, kill_after: int | None = None) -> None:
        """With `kill_after` this process is killed right after so many operations."""
        self.log: list[Operation] = []
        self._root = str(root)
        self._kill_after = kill_after
        self._paths: dict[int, str] = {}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> "Recorder":
        for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "truncate", "open", "write", "pwrite"):
            self._patch(os, name, getattr(self, f"_{name}"))
        for name in ("fsync", "fdatasync"):
            self._patch(os, name, self._fsync)
        for name in ("ftruncate", "close"):
            self._patch(os, name, getattr(self, f"_{name}"))
        for module in (io, builtins):
            self._patch(module, "open", self._open_file)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in reversed(self._undo):
            undo()

    def note(self, operation: Operation) -> None:
        """Add one that was done."""
        self.log.append(operation)
        if len(self.log) == self._kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path below the root; None if it lies elsewhere."""
        if isinstance(path, int):
            return None
        parts = (
            [os.fsdecode(path)] if dir_fd is None else [self._root, self._paths.get(dir_fd, ".."), os.fsdecode(path)]
        )
        relative = os.path.relpath(os.path.join(*parts), self._root)  # noqa: PTH118
        return None if relative.startswith("..") else relative

    def _patch(self, module: Any, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(module, name)
        setattr(module, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))
        self._undo.append(lambda: setattr(module, name, original))

    def _mkdir(self, original: Any, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        original(path, mode, dir_fd=dir_fd)
        self._note_path("mkdir", path, dir_fd)

    def _unlink(self, original: Any, path: Any, *, dir_fd: int | None = None) -> None:
        original(path, dir_fd=dir_fd)
        self._note_path("unlink", path, dir_fd)

    _remove = _unlink

    def _rmdir(self, original: Any, path: Any, *, dir_fd: int | None = None) -> None:
        original(path, dir_fd=dir_fd)
        self._note_path("rmdir", path, dir_fd)

    def _rename(self, original: Any, old: Any, new: Any) -> None:
        original(old, new)
        source, target = self.inside(old), self.inside(new)
        if source is not None and target is not None:
            self.note(Operation("rename", source, target))

    _replace = _rename

    def _open(self, original: Any, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor: int = original(path, flags, mode, dir_fd=dir_fd)
        relative = self.inside(path, dir_fd)
        if relative is not None:
            self.opened(descriptor, relative, flags)
        return descriptor

    def _close(self, original: Any, descriptor: int) -> None:
        self.closed(descriptor)
        original(descriptor)

    def _write(self, original: Any, descriptor: int, data: Any) -> int:
        written: int = original(descriptor, data)
        if descriptor in self._paths:
            self.note_write(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written, bytes(data)[:written])
        return written

    def _pwrite(self, original: Any, descriptor: int, data: Any, offset: int) -> int:
        written: int = original(descriptor, data, offset)
        if descriptor in self._paths:
            self.note_write(descriptor, offset, bytes(data)[:written])
        return written

    def _truncate(self, original: Any, path: Any, size: int) -> None:
        with open(path, "r+b") as file:  # noqa: PTH123
            file.truncate(size)

    def _ftruncate(self, original: Any, descriptor: int, size: int) -> None:
        original(descriptor, size)
        if descriptor in self._paths:
            self.note(Operation("truncate", handle=descriptor, number=size))

    def _fsync(self, original: Any, descriptor: int) -> None:
        original(descriptor)
        if descriptor in self._paths:
            self.note(Operation("fsync", handle=descriptor))

    def _open_file(self, original: Any, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        relative = self.inside(file)
        if relative is None or not set(mode) & set("wxa+"):
            return original(file, mode, *args, **kwargs)
        raw = _RecordedFile(self, os.fsdecode(file), relative, mode.replace("b", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def opened(self, handle: int, path: str, flags: int) -> None:
        """Note that `handle` stands for a file or folder from now on."""
        self._paths[handle] = path
        self.note(Operation("open", path, handle=handle, number=flags))

    def closed(self, handle: int) -> None:
        """Note that it does not any more."""
        self._paths.pop(handle, None)

    def note_write(self, handle: int, offset: int, data: bytes) -> None:
        """Add a write that was done."""
        self.note(Operation("write", handle=handle, number=offset, data=data))

    def _note_path(self, kind: Literal["mkdir", "unlink", "rmdir"], path: Any, dir_fd: int | None) -> None:
        relative = self.inside(path, dir_fd)
        if relative is not None:
            self.note(Operation(kind, relative))


class _RecordedFile(io.FileIO):
    """A file whose every write that reaches the kernel is noted."""

    def __init__(self, recorder: Recorder, path: str, relative: str, mode: str) -> None:
        super().__init__(path, mode)
        self._recorder = recorder
        flags = (0 if mode.startswith("r") else os.O_CREAT) | (os.O_TRUNC if mode.startswith("w") else 0)
        recorder.opened(self.fileno(), relative, flags)

    def close(self) -> None:
        if not self.closed:
            self._recorder.closed(self.fileno())
        super().close()

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._recorder.note_write(self.fileno(), self.tell() - written, bytes(data)[:written])
        return written

    def truncate(self, size: int | None = None) -> int:
        done = super().truncate(size)
        self._recorder.note(Operation("truncate", handle=self.fileno(), number=done))
        return done


class _File:
    def __init__(self) -> None:
        self.now = self.synced = b""

    def content(self, data: Data) -> bytes:
        if data == "kept" or self.now == self.synced:
            return self.now
        if data == "lost":
            return self.synced
        safe = len(os.path.commonprefix([self.now, self.synced]))  # noqa: RUF071
        changed = len(self.now) - safe
        return self.now[: safe + changed // 2] if data == "half" else self.now[:safe] + bytes(changed)


class _Folder:
    def __init__(self) -> None:
        self.now: dict[str, _File | _Folder] = {}
        self.synced: dict[str, _File | _Folder] = {}


class Disk:
    """A folder as the kernel sees it, and as the disk has it for sure. Empty at first."""

    def __init__(self) -> None:
        self._root = _Folder()
        self._handles: dict[int, _File | _Folder] = {}

    def apply(self, operation: Operation) -> None:
        """Do it."""
        kind, path, to, handle, number, data = operation
        if kind == "fsync":
            node = self._handles[handle]
            node.synced = node.now if isinstance(node, _File) else dict(node.now)
        elif kind in ("write", "truncate"):
            file = self._handles[handle]
            assert isinstance(file, _File)
            padded = file.now + bytes(max(number - len(file.now), 0))
            file.now = padded[:number] + (data + padded[number + len(data) :] if kind == "write" else b"")
        else:
            folder, name = self._parent(path)
            if kind == "open":
                self._open(folder, name, handle, number)
            elif kind == "mkdir":
                folder.now[name] = _Folder()
            elif kind == "rename":
                target, new_name = self._parent(to)
                target.now[new_name] = folder.now.pop(name)
            else:
                removed = folder.now.pop(name)
                assert kind == "unlink" or (isinstance(removed, _Folder) and not removed.now)

    def tree(self, names: Names = "kept", data: Data = "kept") -> Tree:
        """What is there after a power cut.

        Changes of names that were not synced are all kept, or all lost, or (fewest) only those that took a name away
        are kept. Bytes that were not synced are kept, or the second half of them is cut off, or they are zeros, or the
        file is as it was synced last.
        """
        found: Tree = {}
        self._collect(self._root, "", names, data, found)
        return found

    def _open(self, folder: _Folder, name: str, handle: int, flags: int) -> None:
        node = folder if name == "." else folder.now.get(name)
        if node is None:
            assert flags & os.O_CREAT
            node = folder.now[name] = _File()
        if flags & os.O_TRUNC:
            assert isinstance(node, _File)
            node.now = b""
        self._handles[handle] = node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        *parents, name = path.split("/")
        folder = self._root
        for part in parents:
            inner = folder.now[part]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name

    def _collect(self, folder: _Folder, prefix: str, names: Names, data: Data, found: Tree) -> None:
        for name, node in folder.now.items() if names == "kept" else folder.synced.items():
            if names == "fewest" and name not in folder.now:
                continue
            path = f"{prefix}{name}"
            if isinstance(node, _File):
                found[path] = node.content(data)
            else:
                found[path] = None
                self._collect(node, f"{path}/", names, data, found)


def replay(log: list[Operation]) -> Iterator[tuple[int, Disk]]:
    """The same disk again and again, with the number of operations done; writes also half done."""
    disk = Disk()
    yield 0, disk
    for done, operation in enumerate(log, start=1):
        if operation.kind == "write" and len(operation.data) > 1:
            half = len(operation.data) // 2
            disk.apply(operation._replace(data=operation.data[:half]))
            yield done - 1, disk
            operation = operation._replace(number=operation.number + half, data=operation.data[half:])  # noqa: PLW2901
        disk.apply(operation)
        yield done, disk


def read_tree(folder: Path) -> Tree:
    """What is below a folder."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def write_tree(folder: Path, tree: Tree) -> None:
    """Make the folder hold just that."""
    for path, content in tree.items():  # folders come before what is in them
        target = folder / path
        if content is None:
            target.mkdir(parents=True)
        else:
            target.write_bytes(content)
