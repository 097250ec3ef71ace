"""The index beside one tar, whoever wrote it. Never changes a tar.

Text and grouping are those of NVIDIA's wds2idx, with two differences. Behind one of GNU's long names, wds2idx gives the
place of the name; here an offset is always that of the file's bytes. And a file without an extension, which
no reader takes for a component, is left out and reported.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from shard_tools.adopt_shard import SeenTar, look_at_tar
from shard_tools.component_names import ComponentMember
from shard_tools.errors import UserError
from shard_tools.grouping import Grouping, group_members
from shard_tools.index import format_index
from shard_tools.storage import Storage
from shard_tools.tar_scan import scan

INDEX_SUFFIX = ".idx"


@dataclass(frozen=True, slots=True)
class IndexTask:
    """A tar to index; with `members`, it is to be adopted, and each of its samples should have these."""

    storage: Storage
    name: str
    force: bool
    members: tuple[ComponentMember, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexedTar:
    """What came of one tar: the number of samples in its index, or why it has none (`problem`).

    `seen` is there where the tar is to be adopted.
    """

    path: str
    samples: int = 0
    written: bool = False
    notes: tuple[str, ...] = ()
    problem: str | None = None
    seen: SeenTar | None = None


def index_shard(task: IndexTask) -> IndexedTar:
    """Write the index of a tar if it is not there, and look at what it holds if that is asked. Raises nothing."""
    path = task.storage.path(task.name)
    try:
        return _index(task, path)
    except UserError as error:
        return IndexedTar(path, problem=str(error))
    except ValueError as error:
        return IndexedTar(path, problem=f"{path}: {error}")
    except OSError as error:
        return IndexedTar(path, problem=f"{error.filename or path}: {error.strerror or 'no such object'}")


def _index(task: IndexTask, path: str) -> IndexedTar:
    with task.storage.reading(task.name) as file:
        grouping = group_members(scan(file, path))
        if not grouping.samples:
            raise ValueError("holds no samples; expected files named KEY.EXTENSION")
        text = format_index(grouping.samples).encode(errors="surrogateescape")
        name = PurePosixPath(task.name).stem + INDEX_SUFFIX
        written = _write(task, name, text)
        seen = look_at_tar(file, task.name, grouping, (name, text), task.members) if task.members else None
    return IndexedTar(
        path,
        samples=len(grouping.samples),
        written=written,
        notes=tuple(_notes(path, grouping)),
        seen=seen,
    )


def _write(task: IndexTask, name: str, text: bytes) -> bool:
    there = read_if_there(task.storage, name)
    if there == text:
        return False
    if there is not None and not task.force:
        raise UserError(f"{task.storage.path(name)}: is there and says something else; replace it with --force")
    task.storage.write(name, text)
    return True


def read_if_there(storage: Storage, name: str) -> bytes | None:
    """All bytes of an object, None where there is none."""
    try:
        return storage.read(name)
    except FileNotFoundError:
        return None


def _notes(path: str, grouping: Grouping) -> list[str]:
    notes = []
    if grouping.left_out:
        kinds = (f"{count:,} × {what} ({grouping.examples[what]})" for what, count in grouping.left_out.items())
        notes.append(f"{path}: not in its index: {', '.join(kinds)}")
    if grouping.returning:
        notes.append(
            f"{path}: samples in pieces, with others in between: {len(grouping.returning):,} "
            f"({grouping.returning[0]}); write the tar anew with its files sorted by name"
        )
    return notes
