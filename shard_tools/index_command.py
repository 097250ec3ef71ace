"""`shard-tools index`: an index beside each of many tars. Never changes a tar, and looks into none itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shard_tools.errors import UserError
from shard_tools.index_shard import IndexedTar, IndexTask, index_shard
from shard_tools.manifest import MANIFEST_NAME
from shard_tools.progress import progress
from shard_tools.shard_patterns import examples
from shard_tools.storage import Storage, open_storage
from shard_tools.workers import run_tasks

TAR_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_LISTED = 20


@dataclass
class FoundTars:
    """The tars that arguments mean, as places and names, each once; and the names of compressed ones beside them."""

    tars: list[tuple[Storage, str]] = field(default_factory=list)
    compressed: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What to say of those that are compressed."""
        if not self.compressed:
            return []
        return [
            f"{len(self.compressed):,} compressed tars cannot be indexed ({examples(self.compressed)}): decompress "
            "them, or train with `data.loader: webdataset`, which needs no index"
        ]


def write_indexes(shards: Sequence[str], *, force: bool, workers: int) -> str:
    """Write NAME.idx beside each NAME.tar; returns a summary to print.

    `shards` are paths or URLs of tars, or of folders, which stand for all *.tar in them. An index that is there and
    says the same is left alone; one that differs is replaced only with `force`. Raises UserError that lists the tars
    that cannot be indexed, and why; all others have their index then.
    """
    found = find_tars(shards)
    indexed = run_index([IndexTask(storage, name, force) for storage, name in found.tars], workers)
    return "\n".join([*summary(indexed, found.notes()), *_how_to_adopt(found)])


def find_tars(shards: Iterable[str]) -> FoundTars:
    """The tars that paths or URLs of tars and folders mean. Raises UserError where there is none."""
    found = FoundTars()
    seen = set()
    for location in shards:
        for storage, name in _find(location, found.compressed):
            if (storage.absolute(), name) not in seen:
                seen.add((storage.absolute(), name))
                found.tars.append((storage, name))
    return found


def run_index(tasks: Sequence[IndexTask], workers: int) -> list[IndexedTar]:
    """Index tars, in order of their paths. Raises UserError that lists those that cannot be, after all others are."""
    indexed: list[IndexedTar] = []
    with progress("indexing", total=len(tasks), unit="shards") as shown:
        for tar in run_tasks(index_shard, tasks, workers):
            indexed.append(tar)
            shown.advance(1)
    indexed.sort(key=lambda tar: tar.path)
    problems = [tar.problem for tar in indexed if tar.problem]
    if problems:
        heading = f"{len(problems):,} of {len(indexed):,} shards cannot be indexed:"
        raise UserError("\n".join([*listed(heading, problems), *summary(indexed, [])]))
    return indexed


def summary(indexed: Sequence[IndexedTar], more_notes: Iterable[str]) -> list[str]:
    """Lines that say how many indexes there are now, and what is to be known of their tars."""
    good = [tar for tar in indexed if tar.problem is None]
    written = sum(tar.written for tar in good)
    samples = sum(tar.samples for tar in good)
    lines = [f"indexes: {written:,} written, {len(good) - written:,} already there; they list {samples:,} samples"]
    notes = [*more_notes, *(note for tar in good for note in tar.notes)]
    return [*lines, *(listed("notes:", notes) if notes else [])]


def listed(heading: str, lines: Sequence[str], total: int | None = None) -> list[str]:
    """A heading and the first lines below it; `total` is how many there are, where not all were kept."""
    rest = (len(lines) if total is None else total) - min(len(lines), MAX_LISTED)
    return [heading, *(f"  {line}" for line in lines[:MAX_LISTED]), *([f"  and {rest:,} more"] if rest else [])]


def _find(location: str, compressed: list[str]) -> list[tuple[Storage, str]]:
    """The tars that an argument means; names of compressed ones in a folder are added to `compressed`."""
    place = open_storage(location)
    if place.is_local:
        local = Path(place.location)
        if not local.exists():
            raise UserError(f"{location}: no such file or folder; expected a tar, or a folder with tars")
        is_tar, parent, name = not local.is_dir(), str(local.parent), local.name
    else:
        parent, _, name = place.location.rpartition("/")
        is_tar = name.endswith((TAR_SUFFIX, *COMPRESSED_SUFFIXES))
    if is_tar:
        return [(open_storage(parent), name)]
    try:
        there = sorted(place.names())
    except OSError as error:
        raise UserError(f"{location}: cannot be listed: {error.strerror}") from None
    names = [name for name in there if name.endswith(TAR_SUFFIX)]
    beside = [name for name in there if name.endswith(COMPRESSED_SUFFIXES)]
    compressed += beside
    if not names:
        more = "".join(f"; {note}" for note in FoundTars(compressed=beside).notes())
        raise UserError(f"{location}: holds no *{TAR_SUFFIX}; expected a tar, or a folder with tars{more}")
    return [(place, name) for name in names]


def _how_to_adopt(found: FoundTars) -> list[str]:
    """A note where a trainer would look for a manifest in vain."""
    without = [storage for storage in dict.fromkeys(storage for storage, _ in found.tars) if not _has_manifest(storage)]
    return [
        f"note: {storage.location} has no {MANIFEST_NAME}, which training wants; this writes it too: "
        f"shard-tools index {storage.location} --split 'train=train-*.tar' --split 'test=test-*.tar'"
        for storage in without
    ]


def _has_manifest(storage: Storage) -> bool:
    try:
        storage.size(MANIFEST_NAME)
    except FileNotFoundError:
        return False
    except (OSError, UserError):
        return True
    return True
