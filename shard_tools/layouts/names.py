"""What the layouts of folders share: one format a component, names that fit nothing, and errors of listing."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from shard_tools.checks import EXTENSIONS
from shard_tools.errors import UserError

_LITTER = re.compile(r"\..*|(?i:thumbs\.db|desktop\.ini)")
_SHOWN = 3


class Strays:
    """Names in the folders of a layout that do not fit it: a mistyped one would else be left out without a word."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[str] = []

    def add(self, name: str) -> None:
        """Note a path, with a "/" behind it for a folder, unless it is what systems leave in folders by themselves."""
        if _LITTER.fullmatch(name.rstrip("/").rpartition("/")[2]):
            return
        self._count += 1
        self._first = sorted((*self._first, printable(name)))[: _SHOWN + 1]

    def notes(self) -> tuple[str, ...]:
        """One line where there are any, the same on every machine."""
        if not self._count:
            return ()
        return (f"{self._count:,} name(s) that do not fit the layout are not used: {examples(self._first)}",)


def printable(name: str) -> str:
    """A name of any bytes as text that can be written; those that are no UTF-8 become \\x and their number."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def one_extension(source: Path, component: str, suffixes: Iterable[str]) -> str:
    """The extension in the shards for files with these suffixes, "" for none; UserError where formats differ."""
    kinds = sorted({EXTENSIONS[suffix.lower()] for suffix in suffixes})
    if len(kinds) > 1:
        raise UserError(
            f"{source}: the {component} files are of several formats ({', '.join(kinds)}); "
            "a component has one format in all tuples: convert the others"
        )
    return kinds[0] if kinds else ""


def suffix_of(name: str) -> str:
    """The suffix of a file name, with its dot."""
    return f".{name.rpartition('.')[2]}"


def unused_backgrounds(names: Sequence[str]) -> tuple[str, ...]:
    """A note of backgrounds that no tuple is made of."""
    return (f"{len(names):,} background(s) without tuples are not used: {examples(names)}",) if names else ()


def examples(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def cannot_list(path: Path, error: OSError) -> UserError:
    """What to say of a folder that cannot be listed."""
    return UserError(f"{path}: cannot be listed: {error.strerror}")
