"""The layout is the one that the user names, or the only one that the source looks like, with the reason."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shard_tools.errors import UserError
from shard_tools.layouts.choose import LAYOUTS, choose_layout, find_tuples

MakeTree = Callable[..., Path]


def add_flat(source: Path) -> None:
    """Put the flat folders of one tuple into `source`."""
    names = ["bg/bg1.jpg"] + [f"{prefix}fgbg_1/{prefix}bg1_0_0_fg_1.jpg" for prefix in ("", "mask_", "depth_")]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()


def add_table(folder: Path) -> Path:
    table = folder / "pairs.csv"
    table.write_text("bg,fgbg,depth,mask\nb.jpg,f.jpg,d.jpg,m.jpg\n")
    return table


def test_each_layout_is_recognised_by_itself(make_tree: MakeTree, tmp_path: Path) -> None:
    add_flat(tmp_path / "flat")
    sources = {"nested": make_tree(), "flat": tmp_path / "flat", "table": add_table(tmp_path)}
    assert set(sources) == set(LAYOUTS)
    for name, source in sources.items():
        layout, reason = choose_layout(source, None)
        assert name == layout.NAME
        assert reason
        findings, same_reason = find_tuples(source, None)
        assert findings.layout == name
        assert len(findings.tuples) >= 1
        assert same_reason == reason


def test_what_looks_like_two_layouts_is_refused_until_one_is_named(make_tree: MakeTree) -> None:
    source = make_tree()
    add_flat(source)
    with pytest.raises(
        UserError,
        match=r"photos: looks like several layouts; say which is meant: --layout nested \(it has folders like "
        r"bg[1-4]/fg_[12]/\); or --layout flat \(it has folders like fgbg_1/\)",
    ):
        find_tuples(source, None)
    flat, reason = find_tuples(source, "flat")
    assert (flat.layout, len(flat.tuples), reason) == ("flat", 1, None)
    nested, reason = find_tuples(source, "nested")
    assert (nested.layout, len(nested.tuples), reason) == ("nested", 40, None)


def test_a_source_that_looks_like_none_is_refused_with_all_that_would_do(tmp_path: Path) -> None:
    message = (
        r"no tuples found; expected a tree with bg/bgB\.jpg .*, or folders fgbg_G, .*, "
        r"or a table \(\.csv, \.jsonl or \.parquet\) with columns bg, fgbg, depth and mask"
    )
    (tmp_path / "notes.txt").touch()
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match=message):
            choose_layout(source, None)


def test_no_such_source_is_said_whatever_the_layout(tmp_path: Path) -> None:
    for name in (None, *LAYOUTS):
        with pytest.raises(UserError, match=r"nowhere: no such folder or table; expected a tree .*, or a table"):
            choose_layout(tmp_path / "nowhere", name)


def test_a_source_of_another_layout_than_the_one_named_is_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    tree, table = make_tree(), add_table(tmp_path)
    for source, name, message in (
        (tree, "flat", r"photos: no tuples found; expected folders fgbg_G"),
        (tree, "table", r"photos: not a table that can be read; expected a file of \.csv, \.jsonl, \.parquet"),
        (table, "nested", r"pairs\.csv: no such folder; expected a tree with bg/bgB\.jpg"),
        (table, "flat", r"pairs\.csv: no such folder; expected folders fgbg_G"),
    ):
        with pytest.raises(UserError, match=message):
            find_tuples(source, name)
