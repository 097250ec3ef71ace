"""The nested tree is found as it is: counts, folder names and gaps are discovered, not assumed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shard_tools.errors import UserError
from shard_tools.layouts.nested import recognise, scan

MakeTree = Callable[..., Path]


@pytest.mark.parametrize(("backgrounds", "foregrounds", "placements"), [(2, 3, 4), (3, 6, 4), (11, 1, 12)])
def test_counts_are_discovered(make_tree: MakeTree, backgrounds: int, foregrounds: int, placements: int) -> None:
    source = make_tree(backgrounds=backgrounds, foregrounds=foregrounds, placements=placements)
    findings = scan(source)
    expected = [
        f"bg{b}_fg_{f}_{k}"
        for b in range(1, backgrounds + 1)
        for f in range(1, foregrounds + 1)
        for k in range(1, placements + 1)
    ]
    assert [item.key for item in findings.tuples] == expected
    assert findings.backgrounds.names == tuple(str(b) for b in range(1, backgrounds + 1))
    assert np.bincount(findings.backgrounds.codes).tolist() == [foregrounds * placements] * backgrounds
    assert findings.found == len(expected)
    assert findings.problems == ()
    assert findings.notes == ()


def test_groups_tell_background_and_foreground_of_each_tuple(make_tree: MakeTree) -> None:
    source = make_tree(backgrounds=3, foregrounds=2, placements=2)
    (source / "bg2").rename(source / "bg12")
    (source / "bg/bg2.jpg").rename(source / "bg/bg12.jpg")
    findings = scan(source)
    assert findings.foregrounds is not None
    assert findings.backgrounds.names == ("1", "3", "12")
    assert findings.foregrounds.names == ("1", "2")
    for item, background, foreground in zip(
        findings.tuples, findings.backgrounds.codes, findings.foregrounds.codes, strict=True
    ):
        metadata = json.loads(item.metadata)
        assert findings.backgrounds.names[background] == str(metadata["background"])
        assert findings.foregrounds.names[foreground] == str(metadata["foreground"])
        assert item.background == f"bg{metadata['background']}"
    assert findings.splits is None
    assert (findings.layout, findings.root) == ("nested", source)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bg/bg3.jpg", "bg/bg3.JPG"),
        ("bg/bg3.jpg", "bg/bg03.jpg"),
        ("bg2/fg_1/overlay/4.jpg", "bg2/fg_1/overlay/04.jpg"),
        ("bg2/fg_1/depth/4.jpg", "bg2/fg_1/depth/4.jpeg"),
        ("bg4/fg_2/mask/5.jpg", "bg4/fg_2/mask/5.JPG"),
        ("bg4/fg_2/mask", "bg4/fg_2/mask_"),
        ("bg4/fg_2", "bg4/fg_3"),
        ("bg4/fg_2", "bg4/fg_02"),
    ],
)
def test_digest_differs_when_a_name_differs(make_tree: MakeTree, old: str, new: str) -> None:
    source = make_tree()
    before = scan(source)
    (source / old).rename(source / new)
    after = scan(source)
    assert after.found == before.found
    assert after.problems == ()
    assert after.digest != before.digest


def test_digest_differs_when_a_tuple_is_gone(make_tree: MakeTree) -> None:
    source = make_tree()
    before = scan(source).digest
    (source / "bg2/fg_1/depth/3.jpg").unlink()
    assert scan(source).digest != before


def test_digest_is_the_same_for_the_same_names(make_tree: MakeTree) -> None:
    source = make_tree()
    before = scan(source).digest
    (source / "bg2/fg_1/depth/3.jpg").write_bytes(b"other bytes")
    (source / "bg2/fg_1/depth/notes.txt").write_text("")
    shutil.copytree(source, source.with_name("elsewhere"))
    assert scan(source).digest == before
    assert scan(source.with_name("elsewhere")).digest == before


def test_a_tree_is_recognised(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree(backgrounds=1, foregrounds=1)
    assert recognise(source) == "it has folders like bg1/fg_1/"
    shutil.rmtree(source / "bg1/fg_1")
    assert recognise(source) is None
    assert recognise(source / "bg/bg1.jpg") is None
    assert recognise(tmp_path / "nowhere") is None


@pytest.mark.parametrize("mask_folder", ["mask", "mask_"])
def test_every_file_is_named(make_tree: MakeTree, mask_folder: str) -> None:
    source = make_tree(mask_folder=mask_folder)
    (source / "dataset.json").write_text("{}")
    (source / "bg1/fg_1/overlay/Thumbs.db").write_text("")
    findings = scan(source)
    item = findings.tuples[7]
    assert item.key == "bg1_fg_2_3"
    assert item.files == (
        "bg/bg1.jpg",
        "bg1/fg_2/overlay/3.jpg",
        "bg1/fg_2/depth/3.jpg",
        f"bg1/fg_2/{mask_folder}/3.jpg",
    )
    assert json.loads(item.metadata) == {"background": 1, "foreground": 2, "placement": 3}
    assert findings.extensions == ("jpg", "jpg", "jpg", "jpg")
    assert findings.tuples[-1] == findings.tuples[38:40][1]
    assert all((source / file).is_file() for item in findings.tuples for file in item.files)


def test_upper_case_suffixes_are_images(make_tree: MakeTree) -> None:
    source = make_tree(suffix="JPEG")
    findings = scan(source)
    assert findings.tuples[0].files[1] == "bg1/fg_1/overlay/1.JPEG"
    assert findings.extensions == ("jpg", "jpg", "jpg", "jpg")
    assert len(findings.tuples) == 40


def test_missing_files_are_problems(make_tree: MakeTree) -> None:
    source = make_tree(backgrounds=3)
    (source / "bg1/fg_1/mask/3.jpg").unlink()
    (source / "bg1/fg_1/depth/3.jpg").unlink()
    shutil.rmtree(source / "bg1/fg_2/overlay")
    (source / "bg/bg2.jpg").unlink()
    findings = scan(source)
    assert [(problem.key, problem.file) for problem in findings.problems[:3]] == [
        ("bg1_fg_1_3", "bg1/fg_1/depth/3.jpg"),
        ("bg1_fg_1_3", "bg1/fg_1/mask/3.jpg"),
        ("bg1_fg_2_1", "bg1/fg_2/overlay/1.jpg"),
    ]
    assert {problem.file for problem in findings.problems[7:]} == {"bg/bg2.jpg"}
    assert findings.found == 30
    assert len(findings.tuples) == 30 - 1 - 5 - 10
    assert findings.backgrounds.names == ("1", "3")
    assert np.bincount(findings.backgrounds.codes).tolist() == [4, 10]
    assert findings.foregrounds is not None
    assert np.bincount(findings.foregrounds.codes).tolist() == [4 + 5, 5]


def test_a_background_without_tuples_is_noted(make_tree: MakeTree) -> None:
    source = make_tree()
    shutil.copy(source / "bg/bg1.jpg", source / "bg/bg9.jpg")
    assert scan(source).notes == ("1 background(s) without tuples are not used: bg9.jpg",)


def test_two_names_for_one_number_are_refused(make_tree: MakeTree) -> None:
    source = make_tree()
    shutil.copy(source / "bg1/fg_1/depth/1.jpg", source / "bg1/fg_1/depth/01.jpg")
    with pytest.raises(UserError, match=r"fg_1/depth: 01\.jpg and 1\.jpg have the same number"):
        scan(source)


def test_two_mask_folders_are_refused(make_tree: MakeTree) -> None:
    source = make_tree()
    shutil.copytree(source / "bg1/fg_1/mask", source / "bg1/fg_1/mask_")
    with pytest.raises(UserError, match="holds both mask and mask_"):
        scan(source)


def test_two_formats_of_one_component_are_refused(make_tree: MakeTree) -> None:
    source = make_tree()
    (source / "bg1/fg_1/mask/1.jpg").rename(source / "bg1/fg_1/mask/1.png")
    with pytest.raises(UserError, match=r"the mask files are of several formats \(jpg, png\)"):
        scan(source)


def test_no_folder_and_no_tuples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected a tree with bg/bgB\.jpg"):
        scan(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no tuples found; expected a tree with bg/bgB\.jpg and bgB/fg_F"):
        scan(tmp_path)


def test_names_that_do_not_fit_are_told(make_tree: MakeTree) -> None:
    """A mistyped name would else be left out without a word."""
    source = make_tree()
    (source / "bg2/fg3").mkdir()
    (source / "bg1/fg_1/overlay/1 (2).jpg").write_text("")
    (source / "bg/back5.jpg").write_text("")
    for litter in (".DS_Store", "Thumbs.db"):
        (source / "bg1/fg_1/mask" / litter).write_text("")
    assert scan(source).notes == (
        "3 name(s) that do not fit the layout are not used: bg/back5.jpg, bg1/fg_1/overlay/1 (2).jpg, bg2/fg3/",
    )


def test_a_name_that_is_no_utf8_can_be_printed(make_tree: MakeTree) -> None:
    source = make_tree()
    (source / "bg1/fg_1/overlay" / os.fsdecode(b"caf\xe9.jpg")).write_text("")
    [note] = scan(source).notes
    assert note == r"1 name(s) that do not fit the layout are not used: bg1/fg_1/overlay/caf\xe9.jpg"
    assert note.encode()


def test_equal_names_fit_in_one_folder_and_not_in_another(tmp_path: Path) -> None:
    """What is known of the names in bg must not be taken for what the placements are."""
    for file in ("bg/1.jpg", *(f"bg1/fg_1/{folder}/1.jpg" for folder in ("overlay", "depth", "mask")), "bg/2.jpg"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    (tmp_path / "bg1/fg_1/overlay/2.jpg").write_text("")
    findings = scan(tmp_path)
    assert findings.found == 2
    assert {problem.file for problem in findings.problems} == {
        "bg/bg1.jpg", "bg1/fg_1/depth/2.jpg", "bg1/fg_1/mask/2.jpg",
    }  # fmt: skip
    assert findings.notes == ("2 name(s) that do not fit the layout are not used: bg/1.jpg, bg/2.jpg",)


def test_missing_files_are_named_as_the_others_are(make_tree: MakeTree) -> None:
    source = make_tree(suffix="PNG")
    missing = ["bg1/fg_1/overlay/1.PNG", "bg1/fg_1/depth/2.PNG", "bg1/fg_1/mask/3.PNG"]
    for file in missing:
        (source / file).unlink()
    shutil.rmtree(source / "bg2/fg_1/mask")
    (source / "bg/bg3.PNG").unlink()
    files = [problem.file for problem in scan(source).problems]
    assert files[:4] == [*missing, "bg2/fg_1/mask/1.PNG"]
    assert set(files[8:]) == {"bg/bg3.PNG"}


def test_missing_files_of_a_component_without_any_are_jpegs(make_tree: MakeTree) -> None:
    source = make_tree(backgrounds=1, foregrounds=1, placements=1, suffix="png")
    (source / "bg1/fg_1/mask/1.png").unlink()
    assert [problem.file for problem in scan(source).problems] == ["bg1/fg_1/mask/1.jpg"]


@pytest.mark.parametrize("name", ["bg_2", "BG2", "bg 2", "bg2_old", "bg2 copy", "bg1234567890"])
def test_a_mistyped_folder_of_a_background_is_told(make_tree: MakeTree, name: str) -> None:
    source = make_tree(backgrounds=2)
    (source / "bg2").rename(source / name)
    findings = scan(source)
    assert len(findings.tuples) == 10
    assert f"1 name(s) that do not fit the layout are not used: {name}/" in findings.notes


def test_other_folders_beside_the_backgrounds_are_not_told(make_tree: MakeTree) -> None:
    source = make_tree()
    for name in ("fg", "scripts", "bgs", "bg_originals"):
        (source / name).mkdir()
    assert scan(source).notes == ()


def test_loose_files_in_a_folder_of_a_foreground_are_told(make_tree: MakeTree) -> None:
    source = make_tree()
    shutil.copy(source / "bg1/fg_1/mask/1.jpg", source / "bg1/fg_1/6.jpg")
    (source / "bg1/fg_1/.DS_Store").write_text("")
    assert scan(source).notes == ("1 name(s) that do not fit the layout are not used: bg1/fg_1/6.jpg",)


@pytest.mark.parametrize("number", ["1234567890", "9223372036854775808"])
def test_numbers_that_are_too_long_are_told(make_tree: MakeTree, number: str) -> None:
    """Two of them could become one as they are counted."""
    source = make_tree(backgrounds=1, foregrounds=1)
    (source / f"bg/bg{number}.jpg").write_text("")
    (source / f"bg1/fg_{number}").mkdir()
    (source / f"bg1/fg_1/mask/{number}.jpg").write_text("")
    findings = scan(source)
    assert len(findings.tuples) == findings.found == 5
    assert findings.notes == (
        "3 name(s) that do not fit the layout are not used: "
        f"bg/bg{number}.jpg, bg1/fg_1/mask/{number}.jpg, bg1/fg_{number}/",
    )
