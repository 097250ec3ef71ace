"""The rows of a table in a CSV, JSONL or Parquet file, one after the other. Knows nothing of what they mean."""

import csv
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from shard_tools.errors import UserError

Row = dict[str, object]
"""The values of a row by the names of their columns; all of them are such that JSON can hold them."""

_SEPARATORS = ",;\t"
_BATCH = 4096


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of the table at `path`, whose suffix is one of READERS; blank lines are none.

    `columns` are those that the table should have: a CSV file is separated by what parts them in its first line.
    Raises UserError that names the line, for a file that cannot be read as what its suffix says.
    """
    try:
        yield from READERS[path.suffix.lower()](path, columns)
    except UnicodeDecodeError:
        raise UserError(f"{path}: line {_first_bad_line(path)} is not UTF-8 text; save the table as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = _separator(file.readline(), columns)
        file.seek(0)
        reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
        try:
            lines = filter(None, reader)
            header = [name.strip() for name in next(lines, [])]
            _refuse_equal_names(path, header)
            for cells in lines:
                if len(cells) != len(header):
                    raise UserError(
                        f"{path}: line {reader.line_num} has {len(cells)} cells, but the header has {len(header)}; "
                        "quote a cell that holds the separator"
                    )
                yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: {error}") from None


def _separator(header: str, columns: Sequence[str]) -> str:
    def fit(separator: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        return len({cell.strip() for cell in cells} & set(columns)), len(cells)

    return max(_SEPARATORS, key=fit)


def _jsonl_rows(path: Path, _: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f'{path}: line {number} is no JSON object; expected {{"bg": …, "fgbg": …}}')
            yield row


def _parquet_rows(path: Path, _: Sequence[str]) -> Iterator[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow; pip install 'dtrain[parquet]', or save as CSV") from None
    try:
        with parquet.ParquetFile(path) as file:
            _refuse_equal_names(path, file.schema_arrow.names)
            for batch in file.iter_batches(_BATCH, use_threads=False):
                for row in batch.to_pylist():
                    yield {name: _as_json(value) for name, value in row.items()}
    except ValueError as error:  # pyarrow's own errors about content are of this kind
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from None


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}
"""What reads a file of each suffix, in lower case."""


def _as_json(value: object) -> object:
    """`value`, or in place of what JSON cannot hold its text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case list():
            return [_as_json(item) for item in value]
        case dict():
            return {str(name): _as_json(item) for name, item in value.items()}
    return str(value)


def _refuse_equal_names(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}: two columns are called {name!r}; rename one of them")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
