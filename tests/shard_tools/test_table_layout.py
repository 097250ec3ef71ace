"""Tables of paths as people have them: separators, quotes, byte order marks, other columns, and their mistakes."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard_tools.errors import UserError
from shard_tools.layouts import Findings
from shard_tools.layouts.table import recognise, scan

COLUMNS = ("bg", "fgbg", "depth", "mask")
ROWS = (
    ("b/one.jpg", "f/1.jpg", "d/1.png", "m/1.png"),
    ("b/one.jpg", "f/2.jpg", "d/2.png", "m/2.png"),
    ("b/two.jpg", "f/3.JPG", "d/3.png", "m/3.png"),
)


def csv_table(path: Path, header: Sequence[str], *rows: Sequence[str], separator: str = ",", end: str = "\n") -> Path:
    path.write_text("".join(separator.join(cells) + end for cells in (header, *rows)), newline="")
    return path


def jsonl_table(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def parquet_table(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def tuples(findings: Findings) -> list[tuple[str, tuple[str, ...], Any, str]]:
    return [(item.key, item.files, json.loads(item.metadata), item.background) for item in findings.tuples]


PLAIN = [
    ("row1", ROWS[0], {"row": 1}, "bg1"),
    ("row2", ROWS[1], {"row": 2}, "bg1"),
    ("row3", ROWS[2], {"row": 3}, "bg2"),
]


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\N{BYTE ORDER MARK}"])
def test_csv_in_its_dialects(tmp_path: Path, separator: str, end: str, mark: str) -> None:
    source = csv_table(tmp_path / "pairs.csv", COLUMNS, *ROWS, separator=separator, end=end)
    source.write_bytes((mark + source.read_bytes().decode() + end).encode())
    findings = scan(source)
    assert tuples(findings) == PLAIN
    assert findings.extensions == ("jpg", "jpg", "png", "png")
    assert (findings.layout, findings.root, findings.found) == ("table", tmp_path, 3)
    assert (findings.foregrounds, findings.splits) == (None, None)
    assert (findings.problems, findings.notes) == ((), ())
    assert findings.backgrounds.names == ("b/one.jpg", "b/two.jpg")
    assert findings.backgrounds.codes.tolist() == [0, 0, 1]
    assert findings.tuples[-1] == findings.tuples[1:][1]


def test_jsonl_and_parquet_say_the_same_as_csv(tmp_path: Path) -> None:
    objects = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    jsonl = scan(jsonl_table(tmp_path / "pairs.jsonl", *objects))
    columns = dict(zip(COLUMNS, map(list, zip(*ROWS, strict=True)), strict=True))
    parquet = scan(parquet_table(tmp_path / "pairs.PARQUET", columns))
    csv = scan(csv_table(tmp_path / "pairs.csv", COLUMNS, *ROWS))
    assert tuples(jsonl) == tuples(parquet) == tuples(csv) == PLAIN
    assert jsonl.digest == parquet.digest == csv.digest


def test_names_with_commas_spaces_quotes_and_letters_of_all_alphabets(tmp_path: Path) -> None:
    names = ["küche, alt.jpg", 'ein "Bild".jpg', "../темно/一.png", "/abs olute/😀.png"]
    cells = ['"' + name.replace('"', '""') + '"' for name in names]
    assert scan(csv_table(tmp_path / "a.csv", COLUMNS, cells)).tuples[0].files == tuple(names)
    source = jsonl_table(tmp_path / "a.jsonl", dict(zip(COLUMNS, names, strict=True)))
    findings = scan(source)
    assert findings.tuples[0].files == tuple(names)
    assert findings.root / findings.tuples[0].files[3] == Path("/abs olute/😀.png")


def test_keys_splits_foregrounds_and_other_columns(tmp_path: Path) -> None:
    header = ("mask", "key", "split", "camera", "bg", "fgbg", "depth", "foreground", "stück")
    source = csv_table(
        tmp_path / "pairs.csv",
        header,
        ("m/1.png", "A-1", "val", "leica", "b/1.jpg", "f/1.jpg", "d/1.png", "sofa", "1"),
        ("m/2.png", "A_2", "", "", "b/1.jpg", "f/2.jpg", "d/2.png", "", "é"),
        ("m/3.png", "03", "train", "canon", "b/1.jpg", "f/3.jpg", "d/3.png", "man", ""),
        ("m/4.png", "3", "val", "canon", "b/1.jpg", "f/4.jpg", "d/4.png", "sofa", ""),
    )
    findings = scan(source)
    assert [item.key for item in findings.tuples] == ["A-1", "A_2", "03", "3"]
    assert findings.splits is not None
    assert findings.splits.names == ("val", "train")
    assert findings.splits.codes.tolist() == [0, -1, 1, 0]
    assert findings.foregrounds is not None
    assert findings.foregrounds.names == ("sofa", "man")
    assert findings.foregrounds.codes.tolist() == [0, -1, 1, 0]
    assert findings.tuples[1].metadata == r'{"row":2,"camera":"","foreground":"","st\u00fcck":"\u00e9"}'


def test_numbers_of_rows_and_backgrounds_are_padded_to_equal_width(tmp_path: Path) -> None:
    rows = [(f"b/{n % 11}.jpg", "f.jpg", "d.jpg", "m.jpg") for n in range(100)]
    findings = scan(csv_table(tmp_path / "pairs.csv", COLUMNS, *rows))
    assert [findings.tuples[i].key for i in (0, 98, 99)] == ["row001", "row099", "row100"]
    assert [findings.tuples[i].background for i in (0, 10, 11)] == ["bg01", "bg11", "bg01"]


def test_empty_cells_are_problems(tmp_path: Path) -> None:
    source = csv_table(
        tmp_path / "pairs.csv",
        (*COLUMNS, "split"),
        ("", "f/1.jpg", "d/1.jpg", "m/1.jpg", "test"),
        ("b/1.jpg", "f/2.jpg", "d/2.jpg", "m/2.jpg", "train"),
        ("b/2.jpg", "f/3.jpg", " ", "", "val"),
        ("b/3.jpg", "f/4.jpg", "d/4.jpg", "m/4.jpg", "train"),
    )
    findings = scan(source)
    assert [(problem.key, problem.file, problem.kind, problem.text) for problem in findings.problems] == [
        ("row1", "pairs.csv, row 1, column bg", "missing", "empty cell"),
        ("row3", "pairs.csv, row 3, column depth", "missing", "empty cell"),
        ("row3", "pairs.csv, row 3, column mask", "missing", "empty cell"),
    ]
    assert findings.found == 4
    assert [item.key for item in findings.tuples] == ["row2", "row4"]
    assert findings.backgrounds.names == ("b/1.jpg", "b/3.jpg")
    assert findings.splits is not None
    assert findings.splits.names == ("train",)


def test_what_jsonl_lacks_or_says_to_be_null_is_an_empty_cell(tmp_path: Path) -> None:
    whole = dict(zip(COLUMNS, ROWS[0], strict=True))
    without = {name: value for name, value in whole.items() if name != "bg"}
    findings = scan(jsonl_table(tmp_path / "pairs.jsonl", without, whole, {**whole, "mask": None}))
    assert [problem.file for problem in findings.problems] == [
        "pairs.jsonl, row 1, column bg",
        "pairs.jsonl, row 3, column mask",
    ]
    assert [item.key for item in findings.tuples] == ["row2"]


def test_values_of_other_columns_keep_their_kind(tmp_path: Path) -> None:
    row = dict(zip(COLUMNS, ROWS[0], strict=True))
    source = jsonl_table(tmp_path / "pairs.jsonl", {**row, "iso": 100, "box": [1, {"x": None}], "row": "mine"})
    assert json.loads(scan(source).tuples[0].metadata) == {"row": "mine", "iso": 100, "box": [1, {"x": None}]}


def test_values_of_parquet_that_json_cannot_hold_become_text(tmp_path: Path) -> None:
    columns = {name: [cell] for name, cell in zip(COLUMNS, ROWS[0], strict=True)}
    source = parquet_table(
        tmp_path / "pairs.parquet",
        {**columns, "key": [7], "day": [date(2020, 5, 3)], "gain": [[1.5, float("nan")]], "lens": [{"f": 2}]},
    )
    item = scan(source).tuples[0]
    assert item.key == "7"
    assert json.loads(item.metadata) == {"row": 1, "day": "2020-05-03", "gain": [1.5, "nan"], "lens": {"f": 2}}
    assert "NaN" not in item.metadata


def csv_of(*lines: str) -> tuple[str, bytes]:
    return "pairs.csv", "\n".join(lines).encode()


def jsonl_of(*lines: str) -> tuple[str, bytes]:
    return "pairs.jsonl", "\n".join(lines).encode()


HEADER = "bg,fgbg,depth,mask"
GOOD = "b.jpg,f.jpg,d.jpg,m.jpg"
GOOD_JSON = '{"bg": "b.jpg", "fgbg": "f.jpg", "depth": "d.jpg", "mask": "m.jpg"}'


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (csv_of(), r"pairs\.csv: an empty table; expected a row for each tuple"),
        (csv_of(HEADER, ""), r"pairs\.csv: an empty table; expected a row for each tuple"),
        (jsonl_of(""), r"pairs\.jsonl: an empty table; expected a row for each tuple"),
        (
            csv_of("bg,fgbg,Depth", "b.jpg,f.jpg,d"),
            r"no column depth and no column mask; it has bg, fgbg, Depth; expected bg",
        ),
        (csv_of("bg|fgbg|depth|mask", GOOD.replace(",", "|")), r"no column bg .* it has bg\|fgbg\|depth\|mask;"),
        (csv_of(f"{HEADER},bg", f"{GOOD},b.jpg"), r"pairs\.csv: two columns are called 'bg'; rename one of them"),
        (csv_of(HEADER, GOOD, "", "b.jpg,f.jpg,d.jpg"), r"line 4 has 3 cells, but the header has 4; quote a cell"),
        (csv_of(HEADER, GOOD, f"{GOOD},"), r"pairs\.csv: line 3 has 5 cells, but the header has 4"),
        (csv_of(HEADER, GOOD, '"b.jpg,f.jpg,d.jpg,m.jpg', GOOD), r"pairs\.csv: line 4: unexpected end of data"),
        (csv_of(HEADER, GOOD, "b.jpg,f.jpg,d.jpg,m.txt"), r"row 2: mask is 'm\.txt'; expected an image of \.jpg"),
        (csv_of(HEADER, GOOD, "b.jpg,f.jpg,d.d/d,m.jpg"), r"row 2: depth is 'd\.d/d'; expected an image of \.jpg"),
        (csv_of(HEADER, GOOD, "b\0.jpg,f.jpg,d.jpg,m.jpg"), r"pairs\.csv: (row 2: bg is|line 3: line contains NUL)"),
        (
            csv_of(HEADER, GOOD, GOOD, GOOD.replace("d.jpg", "d.png"), GOOD.replace("d.jpg", "d.webp")),
            r"the depth files are of several formats \(jpg from row 1 on, png from row 3 on, webp from row 4 on\)",
        ),
        (csv_of(f"{HEADER},key", f"{GOOD},one", f"{GOOD},two three"), r"row 2: key is 'two three'; expected 1 to 80"),
        (csv_of(f"{HEADER},key", f"{GOOD},one", f"{GOOD},"), r"row 2: key is ''; expected 1 to 80 of A-Z, a-z"),
        (csv_of(f"{HEADER},key", f"{GOOD},{'k' * 81}"), r"row 1: key is 'k{81}'; expected 1 to 80"),
        (
            csv_of(f"{HEADER},key", f"{GOOD},a", f"{GOOD},b", f"{GOOD},a"),
            r"pairs\.csv: two tuples with one key, a: rows 1 and 3",
        ),
        (csv_of(f"{HEADER},split", f"{GOOD},Train"), r"row 1: split is 'Train'; expected at most 31 of a-z, 0-9"),
        (csv_of(f"{HEADER},split", f"{GOOD},{'s' * 32}"), r"row 1: split is 's{32}'; expected at most 31"),
        (("pairs.csv", f"{HEADER}\n{GOOD}\nb\xfc.jpg".encode("latin-1")), r"pairs\.csv: line 3 is not UTF-8 text; sav"),
        (("pairs.csv", f"{HEADER}\n{GOOD}\n".encode("utf-16")), r"pairs\.csv: line 1 is not UTF-8 text; save"),
        (("pairs.jsonl", f"{GOOD_JSON}\n\n\xfc".encode("latin-1")), r"pairs\.jsonl: line 3 is not UTF-8 text; save"),
        (jsonl_of(GOOD_JSON, "", '{"bg": '), r"pairs\.jsonl: line 3 is not JSON: Expecting value"),
        (jsonl_of(GOOD_JSON, GOOD_JSON[:-1] + ', "x": NaN}'), r"line 2 is not JSON: NaN is no number of JSON"),
        (jsonl_of(GOOD_JSON, "[" * 100_000), r"line 2 is not JSON: maximum recursion depth exceeded"),
        (jsonl_of(GOOD_JSON, '["b.jpg"]'), r"pairs\.jsonl: line 2 is no JSON object; expected \{\"bg\": "),
        (jsonl_of(GOOD_JSON.replace('"d.jpg"', "7")), r"row 1: depth is 7; expected a path as text"),
        (jsonl_of(GOOD_JSON.replace("d.jpg", r"\ud800.jpg")), r"row 1: depth is '\\ud800\.jpg', which holds what no"),
        (jsonl_of(GOOD_JSON.replace("d.jpg", r"\u0000.jpg")), r"row 1: depth is '\\x00\.jpg', which holds what no"),
        (
            jsonl_of(GOOD_JSON, GOOD_JSON[:-1] + r', "foreground": "\ud800"}'),
            r"row 2: foreground is '\\ud800', which no text can hold; save the table as UTF-8 text",
        ),
        (
            jsonl_of(GOOD_JSON[:-1] + r', "lens": {"f": ["\udfff"]}}'),
            r"row 1: lens is \{'f': \['\\udfff'\]\}, which no text",
        ),
        (jsonl_of(GOOD_JSON[:-1] + r', "a\ud800": 1}'), r"row 1: a\\ud800 is 1, which no text"),
        (
            csv_of(f"{HEADER},files", f"{GOOD},mine"),
            r"pairs\.csv: a column called 'files', which the shards keep for the names of the images; rename it",
        ),
        (jsonl_of(GOOD_JSON, GOOD_JSON[:-1] + ', "files": 1}'), r"pairs\.jsonl: a column called 'files'"),
        (jsonl_of(GOOD_JSON[:-1] + ', "key": true}'), r"row 1: key is True; expected text"),
        (jsonl_of(GOOD_JSON[:-1] + ', "key": 1}', GOOD_JSON), r"pairs\.jsonl: row 2 has no key, but others have"),
        (jsonl_of('{"bg": "b.jpg", "a": 1}', '{"fgbg": "f.jpg"}'), r"no column depth and .*; it has bg, a, fgbg; exp"),
        (("pairs.parquet", b"PAR1"), r"pairs\.parquet: cannot be read as Parquet: "),
        (("pairs.txt", b""), r"pairs\.txt: not a table that can be read; expected a file of \.csv, \.jsonl, \.parquet"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, table: tuple[str, bytes], message: str) -> None:
    name, data = table
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        scan(tmp_path / name)


def test_a_table_that_cannot_be_opened(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        with pytest.raises(UserError, match=rf"nowhere\{suffix}: cannot be read: .*[Nn]o such file"):
            scan(tmp_path / f"nowhere{suffix}")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv: cannot be read: Is a directory"):
        scan(tmp_path / "folder.csv")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet_table(tmp_path / "pairs.parquet", {name: ["x.jpg"] for name in COLUMNS})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"Parquet needs pyarrow; pip install 'dtrain\[parquet\]', or save as CSV"):
        scan(source)
    monkeypatch.undo()
    importlib.import_module("pyarrow.parquet")
    assert len(scan(source).tuples) == 1


@pytest.mark.parametrize(
    "change",
    [
        ("b/two.jpg", "b/too.jpg"),
        ("f/2.jpg", "f/22.jpg"),
        ("d/2.png", "d/2.PNG"),
        ("m/3.png", "m/4.png"),
        ("m/1.png,", "m/1.png,x"),
        ("train", "test"),
        ("leica", "canon"),
        ("k1,train", "k1,val"),
        ("b/one.jpg,f/2", "b/two.jpg,f/2"),
    ],
)
def test_digest_differs_when_a_tuple_differs(tmp_path: Path, change: tuple[str, str]) -> None:
    header = (*COLUMNS, "key", "split", "camera")
    rows = [(*row, f"k{i}", "train" if i else "val", "leica") for i, row in enumerate(ROWS)]
    source = csv_table(tmp_path / "pairs.csv", header, *rows)
    before = scan(source).digest
    assert scan(csv_table(tmp_path / "again.csv", header, *rows, separator=";", end="\r\n")).digest == before
    text = source.read_text()
    assert change[0] in text
    source.write_text(text.replace(*change))
    assert scan(source).digest != before


def test_a_table_is_recognised_by_its_suffix(tmp_path: Path) -> None:
    source = csv_table(tmp_path / "pairs.CSV", COLUMNS)
    assert recognise(source) == "it is a .CSV file"
    (tmp_path / "folder.csv").mkdir()
    assert recognise(tmp_path / "folder.csv") is None
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "nowhere.csv") is None
    (tmp_path / "notes.txt").touch()
    assert recognise(tmp_path / "notes.txt") is None


def test_letters_beyond_sixteen_bits_stay(tmp_path: Path) -> None:
    """JSON writes them as two halves, of which each alone is none."""
    row = dict(zip(COLUMNS, ROWS[0], strict=True))
    findings = scan(jsonl_table(tmp_path / "pairs.jsonl", {**row, "foreground": "😀", "note": r"\ud800"}))
    assert json.loads(findings.tuples[0].metadata) == {"row": 1, "foreground": "😀", "note": r"\ud800"}
    assert findings.foregrounds is not None
    assert findings.foregrounds.names == ("😀",)


def test_the_name_of_the_table_can_be_printed_where_a_cell_is_empty(tmp_path: Path) -> None:
    source = csv_table(tmp_path / os.fsdecode(b"t\xe9.csv"), COLUMNS, ("", "f.jpg", "d.jpg", "m.jpg"))
    assert [problem.file for problem in scan(source).problems] == [r"t\xe9.csv, row 1, column bg"]
