"""What lies in a cache folder, by the names of its files, and which folder and size to take. Never changes anything."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from shard_tools.errors import UserError

_NAME = re.compile(r"([0-9a-f]{64})\.(?:tar|idx|([0-9]+)\.part)")

NextNeed = Callable[[str], float]
"""How soon a content, by its SHA-256, is needed: smaller is sooner, infinite is never."""


class Content(NamedTuple):
    """What a file holds; `bytes` is 0 where its size is known only once it is there."""

    sha256: str
    kind: Literal["tar", "idx"]
    bytes: int

    @property
    def name(self) -> str:
        """The name of the whole file."""
        return f"{self.sha256}.{self.kind}"

    @property
    def partial(self) -> str:
        """The name of the file while it is written."""
        return f"{self.sha256}.{self.bytes}.part"


@dataclass(frozen=True)
class CacheFile:
    """A file that is there; `bytes` of a partial one are those of the whole, `modified` is in seconds."""

    name: str
    sha256: str
    bytes: int
    modified: float


def files_in(folder: Path) -> Iterator[CacheFile]:
    """What the cache holds; none where there is no folder. Files of other names are not its own."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if match := _NAME.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    yield CacheFile(entry.name, match[1], max(status.st_size, int(match[2] or 0)), status.st_mtime)


def worst_first(files: Sequence[CacheFile], next_need: NextNeed) -> list[CacheFile]:
    """In the order to drop them: what is never needed, the longest unused foremost; then what is needed last."""
    return sorted(files, key=lambda file: (-next_need(file.sha256), file.modified))


def free_bytes(folder: Path) -> int:
    """What is free on the disk where `folder` is, or would be."""
    whole = folder.absolute()
    return shutil.disk_usage(next(path for path in (whole, *whole.parents) if path.exists())).free


def default_folder() -> Path:
    """`dtrain` in the user's folder for caches: $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrain"


def default_bytes(folder: Path) -> int:
    """Half of what is free on the disk of `folder`, which need not exist; what the cache holds counts as free.

    Raises UserError where the disk can't be asked.
    """
    try:
        return (free_bytes(folder) + sum(file.bytes for file in files_in(folder))) // 2
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give another folder as data.cache_dir") from None
