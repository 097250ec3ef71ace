"""The rule of indexes at its edges and against plain enumeration, and what `locate` says of real folders."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.locate import locate, rule

MakeTree = Callable[..., Path]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (1, (1, 1, 1)),
        (40, (1, 1, 40)),
        (41, (1, 2, 1)),
        (4000, (1, 100, 40)),
        (4001, (2, 1, 1)),
        (300000, (75, 100, 40)),
        (300001, (76, 1, 1)),
        (400000, (100, 100, 40)),
    ],
)
def test_edges_of_the_rule(index: int, expected: tuple[int, int, int]) -> None:
    assert rule(index, foregrounds=100, placements=40) == expected


@given(backgrounds=st.integers(1, 7), foregrounds=st.integers(1, 9), placements=st.integers(1, 11))
def test_rule_enumerates_a_grid(backgrounds: int, foregrounds: int, placements: int) -> None:
    grid = [
        (b, f, k)
        for b in range(1, backgrounds + 1)
        for f in range(1, foregrounds + 1)
        for k in range(1, placements + 1)
    ]
    indices = range(1, len(grid) + 1)
    assert [rule(index, foregrounds=foregrounds, placements=placements) for index in indices] == grid


@given(index=st.integers(1, 10**12), foregrounds=st.integers(1, 10**4), placements=st.integers(1, 10**4))
def test_rule_is_the_one_with_ceilings_and_remainders(index: int, foregrounds: int, placements: int) -> None:
    assert rule(index, foregrounds=foregrounds, placements=placements) == (
        -(-index // (foregrounds * placements)),
        -(-index // placements) % foregrounds or foregrounds,
        index % placements or placements,
    )


@pytest.mark.parametrize(("index", "foregrounds", "placements"), [(0, 1, 1), (-3, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_rule_counts_from_one(index: int, foregrounds: int, placements: int) -> None:
    with pytest.raises(ValueError, match="each is at least 1"):
        rule(index, foregrounds=foregrounds, placements=placements)


def test_a_tuple_of_a_full_grid(make_tree: MakeTree) -> None:
    source = make_tree(backgrounds=3, foregrounds=2, placements=5, mask_folder="mask_")
    first, *others = locate(source, 14, layout=None).splitlines()
    assert re.fullmatch(r"index 14 of 30, layout nested: it has folders like bg[123]/fg_[12]/", first)
    assert others == [
        "background 2 of 3 (2), foreground 1 of 2 (1), placement 4 of 5",
        "key    bg2_fg_1_4",
        f"bg     {source}/bg/bg2.jpg",
        f"fgbg   {source}/bg2/fg_1/overlay/4.jpg",
        f"depth  {source}/bg2/fg_1/depth/4.jpg",
        f"mask   {source}/bg2/fg_1/mask_/4.jpg",
    ]
    assert locate(source, 1, layout="nested").splitlines()[0] == "index 1 of 30, layout nested"


def test_rule_and_files_agree_on_every_index_of_a_grid(make_tree: MakeTree) -> None:
    source = make_tree(backgrounds=2, foregrounds=3, placements=4)
    for index in range(1, 25):
        background, foreground, placement = rule(index, foregrounds=3, placements=4)
        assert f"key    bg{background}_fg_{foreground}_{placement}\n" in locate(source, index, layout=None)


def test_flat_folders_are_a_grid_too(tmp_path: Path) -> None:
    for b in (1, 4):
        (tmp_path / "bg150").mkdir(exist_ok=True)
        (tmp_path / f"bg150/bg{b}.jpg").touch()
        for prefix in ("", "mask_", "depth_"):
            folder = tmp_path / f"{prefix}fgbg_{b}"
            folder.mkdir()
            for stem in ("0_0_fg_1", "0_1_fg_1", "0_0_flip_fg_1", "0_1_flip_fg_1"):
                (folder / f"{prefix}bg{b}_{stem}.jpg").touch()
    text = locate(tmp_path, 7, layout=None)
    assert "layout flat: it has folders like " in text
    assert "background 2 of 2 (4), foreground 1 of 1 (1), placement 3 of 4\nkey    bg4_fg_1_flip_0_0\n" in text
    assert f"mask   {tmp_path}/mask_fgbg_4/mask_bg4_0_0_flip_fg_1.jpg" in text


@pytest.mark.parametrize(
    ("gone", "key", "complete", "found"),
    [
        ("bg1/fg_2", "bg2_fg_1_4", 25, 25),
        ("bg1/fg_2/mask", "bg2_fg_1_4", 25, 30),
        ("bg2", "bg3_fg_1_4", 20, 20),
        ("bg/bg2.jpg", "bg3_fg_1_4", 20, 30),
    ],
)
def test_where_the_grid_has_holes(make_tree: MakeTree, gone: str, key: str, complete: int, found: int) -> None:
    source = make_tree(backgrounds=3, foregrounds=2, placements=5)
    index = {25: 9, 20: 14}[complete]
    if (source / gone).is_dir():
        shutil.rmtree(source / gone)
    else:
        (source / gone).unlink()
    text = locate(source, index, layout=None)
    assert f"key    {key}\n" in text
    is_grid = complete == found == 20
    assert ("background 2 of 2 (3), foreground 1 of 2 (1), placement 4 of 5" in text) == is_grid
    place = f"the tuple at that place among the {complete} complete ones (of {found})"
    assert ("the rule of indexes does not hold here" in text and place in text) != is_grid


def test_a_table_without_foregrounds_is_no_grid(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("bg,fgbg,depth,mask\n" + "".join(f"b.jpg,f{n}.jpg,d.jpg,/m.jpg\n" for n in range(12)))
    lines = locate(table, 12, layout=None).splitlines()
    assert lines[0] == "index 12 of 12, layout table: it is a .csv file"
    assert lines[1].startswith("the rule of indexes does not hold here")
    assert lines[2] == "key    row12"
    assert lines[-3:] == [f"fgbg   {tmp_path}/f11.jpg", f"depth  {tmp_path}/d.jpg", "mask   /m.jpg"]


@pytest.mark.parametrize("index", [0, -1, 41])
def test_an_index_beyond_is_refused(make_tree: MakeTree, index: int) -> None:
    with pytest.raises(UserError, match=rf"INDEX {index}: .*photos has 40 tuples; expected 1 to 40"):
        locate(make_tree(), index, layout=None)


def test_a_source_without_complete_tuples_is_refused(make_tree: MakeTree) -> None:
    source = make_tree()
    shutil.rmtree(source / "bg")
    with pytest.raises(UserError, match=r"photos: none of its 40 tuples is complete; bg/bg1\.jpg is missing"):
        locate(source, 1, layout=None)
