"""The flat folders are found as they are: counts, groups and the folder of backgrounds are discovered."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from shard_tools.errors import UserError
from shard_tools.layouts import Findings
from shard_tools.layouts.flat import recognise, scan

MakeFlat = Callable[..., Path]


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def make_flat(tmp_path: Path) -> MakeFlat:
    """Write empty files of the layout, a group for each background; layouts look at names alone."""

    def make(
        *,
        backgrounds: Iterable[int] = (1, 2),
        foregrounds: Iterable[int] = (1, 2, 3),
        rows: int = 2,
        columns: int = 2,
        group: str = "fgbg",
        bg_folder: str = "bg150",
        suffix: str = "jpg",
    ) -> Path:
        root = tmp_path / "Dataset150"
        stems = [
            f"{r}_{c}_{flip}fg_{f}"
            for f in foregrounds
            for flip in ("", "flip_")
            for r in range(rows)
            for c in range(columns)
        ]
        for b in backgrounds:
            touch(root / bg_folder / f"bg{b}.{suffix}")
            for prefix in ("", "mask_", "depth_"):
                for stem in stems:
                    touch(root / f"{prefix}{group}_{b}" / f"{prefix}bg{b}_{stem}.{suffix}")
        return root

    return make


def keys(findings: Findings) -> list[str]:
    return [item.key for item in findings.tuples]


@pytest.mark.parametrize(
    ("backgrounds", "foregrounds", "rows", "columns"), [((1, 2), (1, 2, 3), 2, 2), ((2, 10, 7), (12, 3), 1, 3)]
)
def test_counts_are_discovered_and_order_is_numeric(
    make_flat: MakeFlat, backgrounds: tuple[int, ...], foregrounds: tuple[int, ...], rows: int, columns: int
) -> None:
    source = make_flat(backgrounds=backgrounds, foregrounds=foregrounds, rows=rows, columns=columns)
    findings = scan(source)
    assert keys(findings) == [
        f"bg{b}_fg_{f}{flip}_{r}_{c}"
        for b in sorted(backgrounds)
        for f in sorted(foregrounds)
        for flip in ("", "_flip")
        for r in range(rows)
        for c in range(columns)
    ]
    assert findings.found == len(findings.tuples)
    assert findings.backgrounds.names == tuple(map(str, sorted(backgrounds)))
    assert np.bincount(findings.backgrounds.codes).tolist() == [len(foregrounds) * 2 * rows * columns] * len(
        backgrounds
    )
    assert findings.extensions == ("jpg", "jpg", "jpg", "jpg")
    assert findings.problems == ()
    assert findings.notes == ()
    assert (findings.layout, findings.root, findings.splits) == ("flat", source, None)


def test_every_file_is_named(make_flat: MakeFlat) -> None:
    source = make_flat()
    findings = scan(source)
    item = findings.tuples[24 + 8 + 2]
    assert item == findings.tuples[-14] == findings.tuples[33:36][1]
    assert item.key == "bg2_fg_2_1_0"
    assert item.background == "bg2"
    assert all((source / file).is_file() for item in findings.tuples for file in item.files)
    assert len({file for item in findings.tuples for file in item.files}) == 3 * len(findings.tuples) + 2


def test_a_flipped_tuple(make_flat: MakeFlat) -> None:
    findings = scan(make_flat())
    [item] = [item for item in findings.tuples if item.key == "bg2_fg_3_flip_1_0"]
    assert item.files == (
        "bg150/bg2.jpg",
        "fgbg_2/bg2_1_0_flip_fg_3.jpg",
        "depth_fgbg_2/depth_bg2_1_0_flip_fg_3.jpg",
        "mask_fgbg_2/mask_bg2_1_0_flip_fg_3.jpg",
    )
    assert json.loads(item.metadata) == {
        "background": 2, "foreground": 3, "flip": True, "row": 1, "column": 0, "group": 2,
    }  # fmt: skip


def test_a_foreground_and_its_mirror_image_are_one_foreground(make_flat: MakeFlat) -> None:
    findings = scan(make_flat(foregrounds=(2, 10)))
    assert findings.foregrounds is not None
    assert findings.foregrounds.names == ("2", "10")
    for item, code in zip(findings.tuples, findings.foregrounds.codes, strict=True):
        assert findings.foregrounds.names[code] == str(json.loads(item.metadata)["foreground"])


def test_groups_need_not_be_backgrounds(make_flat: MakeFlat) -> None:
    source = make_flat()
    for prefix in ("", "mask_", "depth_"):
        (source / f"{prefix}fgbg_1").rename(source / f"{prefix}fgbg_70")
        for file in (source / f"{prefix}fgbg_2").iterdir():
            file.rename(source / f"{prefix}fgbg_70" / file.name)
        (source / f"{prefix}fgbg_2").rmdir()
    findings = scan(source)
    assert len(findings.tuples) == 48
    assert findings.tuples[0].files[1] == "fgbg_70/bg1_0_0_fg_1.jpg"
    assert json.loads(findings.tuples[30].metadata)["group"] == 70


def test_folders_may_tell_the_size_and_the_originals_may_lie_beside(make_flat: MakeFlat) -> None:
    source = make_flat(group="fgbg150")
    for number in (1, 2):
        touch(source / f"bg/bg{number}.jpg")
    touch(source / "fg150/fg_1.png")
    findings = scan(source)
    assert findings.tuples[0].files == (
        "bg150/bg1.jpg",
        "fgbg150_1/bg1_0_0_fg_1.jpg",
        "depth_fgbg150_1/depth_bg1_0_0_fg_1.jpg",
        "mask_fgbg150_1/mask_bg1_0_0_fg_1.jpg",
    )
    assert findings.notes == ("1 name(s) that do not fit the layout are not used: bg/",)


@pytest.mark.parametrize("folder", ["bg", "bg64", "bg150"])
def test_the_folder_of_backgrounds_is_discovered(make_flat: MakeFlat, folder: str) -> None:
    source = make_flat(bg_folder=folder)
    (source / "bg7").mkdir()
    assert scan(source).tuples[0].files[0] == f"{folder}/bg1.jpg"


def test_several_folders_of_backgrounds_are_refused(make_flat: MakeFlat) -> None:
    source = make_flat()
    shutil.copytree(source / "bg150", source / "bg64")
    with pytest.raises(UserError, match=r"Dataset150: bg150, bg64 hold backgrounds; keep the folder that is meant"):
        scan(source)


def test_upper_case_suffixes_are_images(make_flat: MakeFlat) -> None:
    findings = scan(make_flat(suffix="JPEG"))
    assert findings.tuples[0].files[3] == "mask_fgbg_1/mask_bg1_0_0_fg_1.JPEG"
    assert findings.extensions == ("jpg", "jpg", "jpg", "jpg")
    assert len(findings.tuples) == 48


def test_missing_files_are_problems_named_as_the_others_are(make_flat: MakeFlat) -> None:
    source = make_flat(backgrounds=(1, 2, 3), suffix="png")
    (source / "fgbg_1/bg1_0_0_fg_1.png").unlink()
    (source / "mask_fgbg_1/mask_bg1_0_0_fg_1.png").unlink()
    (source / "depth_fgbg_1/depth_bg1_1_1_flip_fg_3.png").unlink()
    (source / "bg150/bg2.png").unlink()
    shutil.rmtree(source / "mask_fgbg_3")
    findings = scan(source)
    assert [(problem.key, problem.file) for problem in findings.problems[:4]] == [
        ("bg1_fg_1_0_0", "fgbg_1/bg1_0_0_fg_1.png"),
        ("bg1_fg_1_0_0", "mask_fgbg_1/mask_bg1_0_0_fg_1.png"),
        ("bg1_fg_3_flip_1_1", "depth_fgbg_1/depth_bg1_1_1_flip_fg_3.png"),
        ("bg2_fg_1_0_0", "bg150/bg2.png"),
    ]
    assert {problem.kind for problem in findings.problems} == {"missing"}
    assert len(findings.problems) == 3 + 24 + 24
    assert findings.problems[-1].file == "mask_fgbg_3/mask_bg3_1_1_flip_fg_3.png"
    assert findings.found == 72
    assert len(findings.tuples) == 22
    assert findings.backgrounds.names == ("1",)
    assert findings.backgrounds.codes.tolist() == [0] * 22


def test_no_complete_tuple(make_flat: MakeFlat) -> None:
    source = make_flat(group="fgbg64", bg_folder="bg64")
    shutil.rmtree(source / "bg64")
    findings = scan(source)
    assert (len(findings.tuples), findings.found, len(findings.problems)) == (0, 48, 48)
    assert findings.problems[0].file == "bg64/bg1.jpg"


def test_names_that_do_not_fit_are_noted(make_flat: MakeFlat) -> None:
    source = make_flat()
    for prefix in ("", "mask_", "depth_"):
        folder = source / f"{prefix}fgbg_1"
        (folder / f"{prefix}bg1_0_0_fg_1.jpg").rename(folder / f"{prefix}bg1_0_0_gf_1.jpg")
        (source / f"{prefix}fgbg_2").rename(source / f"{prefix}fgbg-2")
    for name in ("bg150/.DS_Store", "fgbg_1/Thumbs.db", "fgbg_1/._bg1_0_0_fg_1.jpg", "Thumbs.db"):
        touch(source / name)
    findings = scan(source)
    assert len(findings.tuples) == 23
    assert findings.notes == (
        "1 background(s) without tuples are not used: bg2.jpg",
        "6 name(s) that do not fit the layout are not used: depth_fgbg-2/, depth_fgbg_1/depth_bg1_0_0_gf_1.jpg, "
        "fgbg-2/, …",
    )


def test_two_tuples_of_one_key_are_refused(make_flat: MakeFlat) -> None:
    source = make_flat()
    touch(source / "fgbg_9/bg2_1_0_flip_fg_3.jpg")
    with pytest.raises(
        UserError,
        match=r"two tuples with one key, bg2_fg_3_flip_1_0: "
        r"fgbg_2/bg2_1_0_flip_fg_3\.jpg and fgbg_9/bg2_1_0_flip_fg_3\.jpg; keep one",
    ):
        scan(source)


def test_one_key_by_other_zeros_is_refused(make_flat: MakeFlat) -> None:
    source = make_flat()
    touch(source / "depth_fgbg_2/depth_bg02_1_0_fg_3.jpg")
    with pytest.raises(UserError, match=r"one key, bg2_fg_3_1_0: depth_fgbg_2/depth_bg02_1_0_fg_3\.jpg and fgbg_2/bg2"):
        scan(source)


def test_two_files_for_one_image_are_refused(make_flat: MakeFlat) -> None:
    source = make_flat()
    touch(source / "depth_fgbg_2/depth_bg2_1_0_fg_3.PNG")
    with pytest.raises(UserError, match=r"depth_fgbg_2: depth_bg2_1_0_fg_3\.PNG and depth_bg2_1_0_fg_3\.jpg stand for"):
        scan(source)
    (source / "depth_fgbg_2/depth_bg2_1_0_fg_3.PNG").unlink()
    touch(source / "bg150/bg01.jpg")
    with pytest.raises(UserError, match=r"bg150: bg01\.jpg and bg1\.jpg have the same number; keep one of them"):
        scan(source)


@pytest.mark.parametrize(
    ("file", "component"),
    [
        ("bg150/bg1.jpg", "bg"),
        ("fgbg_1/bg1_0_0_fg_1.jpg", "fgbg"),
        ("depth_fgbg_1/depth_bg1_0_0_fg_1.jpg", "depth"),
        ("mask_fgbg_1/mask_bg1_0_0_fg_1.jpg", "mask"),
    ],
)
def test_two_formats_of_one_component_are_refused(make_flat: MakeFlat, file: str, component: str) -> None:
    source = make_flat()
    (source / file).rename((source / file).with_suffix(".png"))
    with pytest.raises(UserError, match=rf"the {component} files are of several formats \(jpg, png\); .* convert"):
        scan(source)


def test_components_may_differ_in_format(make_flat: MakeFlat) -> None:
    source = make_flat()
    for file in source.glob("mask_fgbg_*/*.jpg"):
        file.rename(file.with_suffix(".png"))
    assert scan(source).extensions == ("jpg", "jpg", "jpg", "png")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bg150", "bg151"),
        ("bg150/bg1.jpg", "bg150/bg1.JPG"),
        ("bg150/bg1.jpg", "bg150/bg01.jpg"),
        ("fgbg_2/bg2_1_0_fg_3.jpg", "fgbg_2/bg2_1_0_fg_3.jpeg"),
        ("depth_fgbg_2/depth_bg2_1_0_fg_3.jpg", "depth_fgbg_2/depth_bg2_1_0_fg_3.jpeg"),
        ("mask_fgbg_2/mask_bg2_1_0_fg_3.jpg", "mask_fgbg_2/mask_bg2_1_0_fg_3.jpeg"),
    ],
)
def test_digest_differs_when_a_name_differs(make_flat: MakeFlat, old: str, new: str) -> None:
    source = make_flat()
    before = scan(source)
    (source / old).rename(source / new)
    after = scan(source)
    assert keys(after) == keys(before)
    assert after.digest != before.digest


def test_digest_differs_by_the_stem_alone(make_flat: MakeFlat) -> None:
    source = make_flat()
    before = scan(source)
    for prefix in ("", "mask_", "depth_"):
        folder = source / f"{prefix}fgbg_2"
        (folder / f"{prefix}bg2_1_0_fg_3.jpg").rename(folder / f"{prefix}bg2_1_0_fg_03.jpg")
    after = scan(source)
    assert keys(after) == keys(before)
    assert after.digest != before.digest


def test_digest_is_the_same_for_the_same_tuples(make_flat: MakeFlat) -> None:
    source = make_flat()
    before = scan(source).digest
    (source / "fgbg_1/bg1_0_0_fg_1.jpg").write_bytes(b"other bytes")
    touch(source / "fgbg_1/notes.txt")
    touch(source / "fgbg_0/bg9_0_0_fg_1.PNG")
    shutil.copytree(source, source.with_name("elsewhere"))
    assert scan(source).digest == before
    assert scan(source.with_name("elsewhere")).digest == before


def test_flat_folders_are_recognised(make_flat: MakeFlat, tmp_path: Path) -> None:
    source = make_flat(backgrounds=(4, 12))
    assert recognise(source) == "it has folders like fgbg_4/"
    assert recognise(source / "bg150") is None
    assert recognise(source / "bg150/bg4.jpg") is None
    assert recognise(tmp_path / "nowhere") is None


def test_no_folder_and_no_tuples(make_flat: MakeFlat, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected folders fgbg_G, mask_fgbg_G"):
        scan(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no tuples found; expected folders fgbg_G"):
        scan(tmp_path)
    (tmp_path / "fgbg_1").mkdir()
    with pytest.raises(UserError, match=r"no tuples found; expected folders fgbg_G"):
        scan(tmp_path)


def test_a_name_that_is_no_utf8_can_be_printed(make_flat: MakeFlat) -> None:
    source = make_flat()
    touch(source / "fgbg_1" / os.fsdecode(b"caf\xe9.jpg"))
    assert scan(source).notes == (r"1 name(s) that do not fit the layout are not used: fgbg_1/caf\xe9.jpg",)


def test_a_suffix_of_letters_that_only_look_alike_is_none(make_flat: MakeFlat) -> None:
    source = make_flat(suffix="tif")
    touch(source / "fgbg_1/bg1_9_9_fg_1.t\u0131f")
    assert scan(source).notes == ("1 name(s) that do not fit the layout are not used: fgbg_1/bg1_9_9_fg_1.t\u0131f",)
