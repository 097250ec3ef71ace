"""`shard-tools index`: an index beside each tar, whoever wrote it. Never changes a tar.

Text and grouping are those of NVIDIA's wds2idx, with two differences. Behind one of GNU's long names, wds2idx gives the
place of the name; here an offset is always that of the file's bytes. And a file without an extension, which
no reader takes for a component, is left out and reported.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shard_tools.errors import UserError
from shard_tools.index import IndexedSample, Member, format_index
from shard_tools.progress import progress
from shard_tools.storage import Storage, open_storage
from shard_tools.tar_scan import FILE, TarMember, scan
from shard_tools.workers import run_tasks

TAR_SUFFIX = ".tar"
INDEX_SUFFIX = ".idx"
MAX_LISTED = 20


@dataclass
class Grouping:
    """The samples of a tar in its order.

    `left_out` counts the members that belong to none by what they are, and `examples` has the first of each.
    `returning` are the keys that come again after those of another sample, each time as a sample of its own.
    """

    samples: list[IndexedSample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    returning: list[str] = field(default_factory=list)


def group_members(members: Iterable[TarMember]) -> Grouping:
    """Take neighbours with the same path up to the first dot of the file's name for one sample.

    Folders, links, hidden files (their name begins with a dot) and files without an extension belong to none. Raises
    ValueError for a name with white space, which an index cannot hold.
    """
    grouping = Grouping()
    groups: list[tuple[str, list[Member]]] = []
    for name, offset, size, kind in members:
        folder, slash, file_name = name.rpartition("/")
        stem, _, extension = file_name.partition(".")
        if kind == FILE and stem and extension:
            if name.split() != [name]:
                raise ValueError(f"the name {name!r} has white space, which an index cannot hold; rename it")
            key = folder + slash + stem
            if not groups or groups[-1][0] != key:
                groups.append((key, []))
            groups[-1][1].append(Member(extension, offset, size))
        elif kind != "folder":
            what = kind if kind != FILE else "file without an extension" if stem else "hidden file"
            grouping.left_out[what] += 1
            grouping.examples.setdefault(what, name)
    grouping.samples = [IndexedSample(key, tuple(found)) for key, found in groups]
    grouping.returning = [key for key, count in Counter(key for key, _ in groups).items() if count > 1]
    return grouping


def write_indexes(shards: Sequence[str], *, force: bool, workers: int) -> str:
    """Write NAME.idx beside each NAME.tar; returns a summary to print.

    `shards` are paths or URLs of tars, or of folders, which stand for all *.tar in them. An index that is there and
    says the same is left alone; one that differs is replaced only with `force`. Raises UserError that lists the tars
    that cannot be indexed, and why; all others have their index then.
    """
    tasks = list(dict.fromkeys(_Task(storage, name, force) for shard in shards for storage, name in _find(shard)))
    outcomes: list[_Outcome] = []
    with progress("indexing", total=len(tasks), unit="shards") as shown:
        for outcome in run_tasks(_index_shard, tasks, workers):
            outcomes.append(outcome)
            shown.advance(1)
    outcomes.sort(key=lambda outcome: outcome.path)
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    if problems:
        heading = f"{len(problems):,} of {len(outcomes):,} shards cannot be indexed:"
        raise UserError("\n".join([*_listed(heading, problems), *_summary(outcomes)]))
    return "\n".join(_summary(outcomes))


@dataclass(frozen=True, slots=True)
class _Task:
    storage: Storage
    name: str
    force: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of one tar: the number of samples in its index, or why it has none."""

    path: str
    samples: int = 0
    written: bool = False
    notes: tuple[str, ...] = ()
    problem: str | None = None


def _find(location: str) -> list[tuple[Storage, str]]:
    """The tars that an argument means, as places and names."""
    place = open_storage(location)
    if place.is_local:
        local = Path(place.location)
        if not local.exists():
            raise UserError(f"{location}: no such file or folder; expected a tar, or a folder with tars")
        is_tar, parent, name = not local.is_dir(), str(local.parent), local.name
    else:
        parent, _, name = place.location.rpartition("/")
        is_tar = name.endswith(TAR_SUFFIX)
    if is_tar:
        return [(open_storage(parent), name)]
    names = sorted(name for name in place.names() if name.endswith(TAR_SUFFIX))
    if not names:
        raise UserError(f"{location}: holds no *{TAR_SUFFIX}; expected a tar, or a folder with tars")
    return [(place, name) for name in names]


def _index_shard(task: _Task) -> _Outcome:
    path = task.storage.path(task.name)
    try:
        with task.storage.reading(task.name) as file:
            grouping = group_members(scan(file, path))
        if not grouping.samples:
            return _Outcome(path, problem=f"{path}: holds no samples; expected files named KEY.EXTENSION")
        text = format_index(grouping.samples).encode(errors="surrogateescape")
        name = PurePosixPath(task.name).stem + INDEX_SUFFIX
        there = _read_if_there(task.storage, name)
        if there not in (None, text) and not task.force:
            problem = f"{task.storage.path(name)}: is there and says something else; replace it with --force"
            return _Outcome(path, problem=problem)
        if there != text:
            task.storage.write(name, text)
    except UserError as error:
        return _Outcome(path, problem=str(error))
    except ValueError as error:
        return _Outcome(path, problem=f"{path}: {error}")
    except OSError as error:
        return _Outcome(path, problem=f"{error.filename or path}: {error.strerror or 'no such object'}")
    return _Outcome(path, len(grouping.samples), there != text, tuple(_notes(path, grouping)))


def _read_if_there(storage: Storage, name: str) -> bytes | None:
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


def _summary(outcomes: Sequence[_Outcome]) -> list[str]:
    indexed = [outcome for outcome in outcomes if outcome.problem is None]
    written = sum(outcome.written for outcome in indexed)
    samples = sum(outcome.samples for outcome in indexed)
    lines = [f"indexes: {written:,} written, {len(indexed) - written:,} already there; they list {samples:,} samples"]
    notes = [note for outcome in indexed for note in outcome.notes]
    return [*lines, *(_listed("notes:", notes) if notes else [])]


def _listed(heading: str, lines: Sequence[str]) -> list[str]:
    rest = [f"  and {len(lines) - MAX_LISTED:,} more"] if len(lines) > MAX_LISTED else []
    return [heading, *(f"  {line}" for line in lines[:MAX_LISTED]), *rest]
