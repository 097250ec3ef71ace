"""A table with a row for each tuple, in CSV, JSONL or Parquet. Reads the table alone, never a file that it names."""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shard_tools.checks import EXTENSIONS, Problem
from shard_tools.components import COMPONENTS
from shard_tools.errors import UserError
from shard_tools.layouts import Findings, Groups, LazyTuples, SourceTuple
from shard_tools.layouts.names import printable, suffix_of
from shard_tools.layouts.table_rows import READERS, Row, read_rows
from shard_tools.layouts.texts import Texts

NAME = "table"
EXPECTED = "a table (.csv, .jsonl or .parquet) with columns bg, fgbg, depth and mask"

_RESERVED = "files"
"""The name under which the packer tells in KEY.json what the images were called."""
_NOT_METADATA = {*COMPONENTS, "key", "split"}
_KEY = re.compile("[A-Za-z0-9_-]{1,80}")
_NOT_IN_NAMES = re.compile("[\0\ud800-\udfff]")
_SPLIT = re.compile("[a-z0-9][a-z0-9_-]{0,30}")


def recognise(source: Path) -> str | None:
    """Why `source` looks like this layout: it is a file with the suffix of a table."""
    if source.suffix.lower() in READERS and source.is_file():
        return f"it is a {source.suffix} file"
    return None


def scan(source: Path) -> Findings:
    """Find the tuples that the table `source` lists, in its order; paths are relative to its folder, or absolute.

    Metadata are the row's number, "row", from 1, and the other columns, of which "foreground" is one; a column "row"
    takes the place of the number. Raises UserError where the table cannot be read, lacks a column or has no rows,
    where a value is no path of an image, no key or no name of a split, and where two rows have one key.
    """
    if source.suffix.lower() not in READERS:
        raise UserError(f"{source}: not a table that can be read; expected a file of {', '.join(READERS)}")
    return _Scan(source).run()


class _Names:
    """One column of names that repeat: numbered in order of first appearance; the empty name is none."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.codes = array("i")

    def append(self, name: str) -> None:
        self.codes.append(self.numbers.setdefault(name, len(self.numbers)) if name else -1)

    def groups(self) -> Groups:
        return Groups(tuple(self.numbers), np.array(self.codes, np.int32))


class _Scan:
    def __init__(self, source: Path) -> None:
        self._source = source
        self._columns: dict[str, None] = {}
        self._row = 0
        self._key_rows: dict[str, int] = {}
        self._row_without_key = 0
        self._lacking: list[tuple[int, tuple[str, ...]]] = []
        self._formats: dict[str, dict[str, int]] = {component: {} for component in COMPONENTS}
        self._rows = array("q")
        self._backgrounds, self._foregrounds, self._splits = _Names(), _Names(), _Names()
        self._files = (Texts(), Texts(), Texts())
        self._metadata = Texts()

    def run(self) -> Findings:
        for row in read_rows(self._source, COMPONENTS):
            self._row += 1
            self._columns.update(dict.fromkeys(row))
            self._add(row)
        self._check_columns()
        keys = _Keys(self._row, Texts(self._key_rows) if "key" in self._columns else None)
        self._key_rows.clear()
        backgrounds = self._backgrounds.groups()
        tuples = _Tuples(keys, self._rows, backgrounds, self._files, self._metadata)
        foregrounds = self._foregrounds.groups() if "foreground" in self._columns else None
        splits = self._splits.groups() if "split" in self._columns else None
        return Findings(
            layout=NAME,
            root=self._source.parent,
            tuples=tuples,
            backgrounds=backgrounds,
            foregrounds=foregrounds,
            splits=splits,
            extensions=self._extensions(),
            digest=tuples.digest(splits),
            found=self._row,
            problems=tuple(self._problems(keys)),
            notes=(),
        )

    def _add(self, row: Row) -> None:
        """Take in a row; of one with an empty cell only that."""
        files = [self._file(component, row.get(component)) for component in COMPONENTS]
        self._add_key(row)
        split, foreground = self._text(row, "split"), self._text(row, "foreground")
        if split and not _SPLIT.fullmatch(split):
            raise self._error(f"split is {split!r}; expected at most 31 of a-z, 0-9, _ and -")
        if not all(files):
            lacking = (component for component, file in zip(COMPONENTS, files, strict=True) if not file)
            self._lacking.append((self._row, tuple(lacking)))
            return
        for component, file in zip(COMPONENTS, files, strict=True):
            self._formats[component].setdefault(EXTENSIONS[suffix_of(file).lower()], self._row)
        self._rows.append(self._row)
        for names, name in ((self._backgrounds, files[0]), (self._foregrounds, foreground), (self._splits, split)):
            names.append(name)
        for texts, file in zip(self._files, files[1:], strict=True):
            texts.append(file)
        others = {name: value for name, value in row.items() if name not in _NOT_METADATA}
        metadata = json.dumps({"row": self._row, **others}, separators=(",", ":"))
        if "\\ud" in metadata:  # half a letter in JSON, which is none without the other
            self._refuse_half_letters(others)
        self._metadata.append(metadata)

    def _refuse_half_letters(self, values: Row) -> None:
        for name, value in values.items():
            try:
                json.dumps({name: value}, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                text = f"{name} is {value!r}, which no text can hold; save the table as UTF-8 text"
                raise self._error(text.encode(errors="backslashreplace").decode()) from None

    def _file(self, component: str, value: object) -> str:
        if not isinstance(value, str | None):
            raise self._error(f"{component} is {value!r}; expected a path as text")
        file = (value or "").strip()
        if file and suffix_of(file).lower() not in EXTENSIONS:
            raise self._error(f"{component} is {file!r}; expected an image of {', '.join(EXTENSIONS)}")
        if _NOT_IN_NAMES.search(file):
            raise self._error(f"{component} is {file!r}, which holds what no file name can")
        return file

    def _text(self, row: Row, column: str) -> str:
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise self._error(f"{column} is {value!r}; expected text")
        return "" if value is None else str(value).strip()

    def _add_key(self, row: Row) -> None:
        if "key" not in row:
            self._row_without_key = self._row_without_key or self._row
            return
        key = self._text(row, "key")
        if not _KEY.fullmatch(key):
            raise self._error(f"key is {key!r}; expected 1 to 80 of A-Z, a-z, 0-9, _ and -")
        first = self._key_rows.setdefault(key, self._row)
        if first != self._row:
            raise UserError(f"{self._source}: two tuples with one key, {key}: rows {first} and {self._row}")

    def _check_columns(self) -> None:
        if _RESERVED in self._columns:
            raise UserError(
                f"{self._source}: a column called {_RESERVED!r}, which the shards keep for the names of the images; "
                "rename it"
            )
        missing = [component for component in COMPONENTS if component not in self._columns]
        if self._row and missing:
            raise UserError(
                f"{self._source}: no column {' and no column '.join(missing)}; it has {', '.join(self._columns)}; "
                f"expected {', '.join(COMPONENTS)}, and if you like key, split, foreground and others"
            )
        if not self._row:
            raise UserError(f"{self._source}: an empty table; expected a row for each tuple, with {EXPECTED}")
        if "key" in self._columns and self._row_without_key:
            raise UserError(f"{self._source}: row {self._row_without_key} has no key, but others have")

    def _extensions(self) -> tuple[str, ...]:
        """The extension of each component; UserError where one component comes with several."""
        for component, rows in self._formats.items():
            if len(rows) > 1:
                found = ", ".join(f"{extension} from row {row} on" for extension, row in rows.items())
                raise UserError(
                    f"{self._source}: the {component} files are of several formats ({found}); "
                    "a component has one format in all tuples: convert the others"
                )
        return tuple(extension for rows in self._formats.values() for extension in rows)

    def _problems(self, keys: "_Keys") -> Iterator[Problem]:
        for row, components in self._lacking:
            for component in components:
                place = f"{printable(self._source.name)}, row {row}, column {component}"
                yield Problem(keys.of(row), place, "missing", "empty cell")

    def _error(self, text: str) -> UserError:
        return UserError(f"{self._source}: row {self._row}: {text}")


@dataclass(frozen=True, slots=True)
class _Keys:
    """The key of each of `rows` rows: what the table gives, or else the row's number, from 1."""

    rows: int
    given: Texts | None

    def of(self, row: int) -> str:
        return self.given[row - 1] if self.given else f"row{row:0{len(str(self.rows))}}"


@dataclass(frozen=True, slots=True)
class _Tuples(LazyTuples):
    """Tuples as columns, made when asked for. `rows` has the row of each; `files` are fgbg, depth and mask."""

    keys: _Keys
    rows: Sequence[int]
    backgrounds: Groups
    files: tuple[Texts, Texts, Texts]
    metadata: Texts

    def digest(self, splits: Groups | None) -> str:
        """SHA-256 of all that the tuples are, in order, and of their `splits`."""
        digest = hashlib.sha256(np.asarray(self.rows, np.int64).tobytes())
        given = (self.keys.given,) if self.keys.given else ()
        for texts in (*given, *self.files, self.metadata):
            digest.update(texts.digest())
        for groups in filter(None, (self.backgrounds, splits)):
            digest.update(json.dumps(groups.names).encode())
            digest.update(groups.codes.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def tuple_at(self, index: int) -> SourceTuple:
        names = self.backgrounds.names
        background = int(self.backgrounds.codes[index])
        return SourceTuple(
            key=self.keys.of(self.rows[index]),
            files=(names[background], *(texts[index] for texts in self.files)),
            metadata=self.metadata[index],
            background=f"bg{background + 1:0{len(str(len(names)))}}",
        )
