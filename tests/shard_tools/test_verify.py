"""`shard-tools verify` finds every kind of damage, and says in which shard and sample it is."""

import json
import os
import re
import shutil
from pathlib import Path

import fsspec
import pytest

from shard_tools.check_shard import hash_key
from shard_tools.errors import UserError
from shard_tools.index import parse_index
from shard_tools.manifest import open_shards, read_manifest
from shard_tools.verify import repeated_keys, verify

from .shards import COMPONENTS, DataSet, jpeg, make_data_set, seal

FIRST = "bg1_fg_1_1"


def check(folder: Path | str, *, decode: bool = False, workers: int = 1, json_file: Path | None = None) -> str:
    return verify(str(folder), decode=decode, workers=workers, json_file=json_file)


def failure(folder: Path | str, *, decode: bool = False, json_file: Path | None = None) -> str:
    """What the user reads when something is wrong."""
    with pytest.raises(UserError) as caught:
        check(folder, decode=decode, json_file=json_file)
    return str(caught.value)


@pytest.fixture(params=["sample", "shared"])
def data_set(request: pytest.FixtureRequest) -> DataSet:
    return make_data_set(shared=request.param == "shared")


# Whole


@pytest.mark.parametrize("decode", [False, True])
def test_a_whole_data_set(data_set: DataSet, tmp_path: Path, decode: bool) -> None:
    before = sorted(path.name for path in data_set.write(tmp_path).iterdir())
    text = check(tmp_path, decode=decode)
    shards = 5 if data_set.backgrounds else 3
    assert f"{tmp_path} is whole: 7 tuples in {shards} shards" in text
    assert ("every image can be decoded" in text) == decode
    assert "warning" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("ending", ["", "/", "/shards.json"])
def test_location_is_a_folder_or_its_manifest(tmp_path: Path, ending: str) -> None:
    make_data_set().write(tmp_path)
    assert "is whole" in check(f"{tmp_path}{ending}")


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    data_set = make_data_set()
    for samples in data_set.splits["train"]:
        del next(iter(samples.values()))["json"]
    data_set.write(tmp_path)
    with pytest.raises(UserError) as several:
        check(tmp_path, workers=2)
    assert str(several.value) == failure(tmp_path)


def test_a_remote_place(tmp_path: Path) -> None:
    make_data_set(shared=True).write(tmp_path)
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/", "/verify/", recursive=True)
    assert "memory://verify is whole: 7 tuples in 5 shards" in check("memory://verify", decode=True)
    fs.pipe("/verify/old.tar", b"")
    assert "warning: old.tar: not in shards.json" in check("memory://verify")
    fs.rm("/verify/test-000000.tar")
    assert "test-000000.tar: no such file" in failure("memory://verify")


# Damage to files


def test_a_tar_that_was_cut_at_a_member(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = parse_index((tmp_path / "train-000000.idx").read_text(), "")
    second = index[1]
    os.truncate(tmp_path / "train-000000.tar", second.members[0].offset - 512)
    text = failure(tmp_path)
    assert "train-000000.tar: " in text
    assert "but the manifest says" in text
    assert "without the two blocks of zeros that end an archive" in text
    assert f"train-000000.tar: {second.key}: not whole in the tar, nor are 1 others after it" in text
    assert "3 findings in 1 file" in text


def test_a_tar_that_was_cut_inside_a_member(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = parse_index((tmp_path / "train-000000.idx").read_text(), "")
    os.truncate(tmp_path / "train-000000.tar", index[-1].members[2].offset + 10)
    text = failure(tmp_path)
    assert "inside the member 'bg2_fg_1_1.depth.jpg'" in text
    assert "train-000000.tar: bg2_fg_1_1: not whole" in text
    assert "3 findings in 1 file" in text


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_an_image(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = parse_index((tmp_path / "test-000000.idx").read_text(), "")
    flip_bit(tmp_path / "test-000000.tar", index[0].members[0].offset + 100)
    text = failure(tmp_path)
    assert "test-000000.tar: its SHA-256 is not the one in the manifest" in text
    assert "1 finding in 1 file" in text


def test_a_flipped_bit_in_a_header(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = parse_index((tmp_path / "test-000000.idx").read_text(), "")
    header = index[1].members[0].offset - 512
    flip_bit(tmp_path / "test-000000.tar", header)
    text = failure(tmp_path)
    assert f"damaged at byte {header:,}" in text
    assert "test-000000.tar: bg3_fg_1_2: not whole" in text


def test_an_index_line_that_was_changed(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = tmp_path / "test-000000.idx"
    index.write_text(index.read_text().replace("bg.jpg 512 ", "bg.jpg 513 ", 1))
    text = failure(tmp_path)
    assert "test-000000.idx: its SHA-256 is not the one in the manifest" in text
    assert "test-000000.tar: bg3_fg_1_1: bg3_fg_1_1.bg.jpg: at byte 512 with" in text
    assert "but the index says 513" in text


def test_an_index_that_is_no_index(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    (tmp_path / "test-000000.idx").write_bytes(b"\xff\xfe")
    (tmp_path / "train-000000.idx").write_text("nonsense\n")
    text = failure(tmp_path)
    assert "test-000000.idx: 'utf-8' codec can't decode" in text
    assert "train-000000.idx: first line should be" in text
    assert "2 findings in 2 files" in text


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.idx"])
def test_a_missing_file_does_not_end_the_check_of_others(tmp_path: Path, name: str) -> None:
    make_data_set().write(tmp_path)
    (tmp_path / name).unlink()
    flip_bit(tmp_path / "test-000000.tar", 600)
    text = failure(tmp_path)
    assert f"{name}: no such file, but the manifest lists it" in text
    assert "test-000000.tar: its SHA-256" in text
    assert "2 findings in 2 files" in text


@pytest.mark.parametrize("name", ["test-000000.tar", "test-000000.idx"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    make_data_set().write(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert f"{name}: cannot be read: Is a directory" in failure(tmp_path)


def test_a_shard_replaced_by_another(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    (tmp_path / "train-000001.tar").write_bytes((tmp_path / "test-000000.tar").read_bytes())
    text = failure(tmp_path)
    assert "the tar has 'bg3_fg_1_1.bg.jpg' in its place" in text
    assert "train-000001.tar: and " in text


# What a shard with the right hash can have wrong


def rename(path: Path, old: bytes, new: bytes) -> None:
    """Change names of the same length in a tar, as if it had been written so."""
    data = bytearray(path.read_bytes().replace(old, new))
    for sample in parse_index(path.with_suffix(".idx").read_text(), ""):
        for member in sample.members:
            header = data[member.offset - 512 : member.offset]
            header[148:156] = b" " * 8
            data[member.offset - 512 + 148 : member.offset - 512 + 156] = b"%06o\0 " % sum(header)
    path.write_bytes(data)


def test_a_member_that_was_renamed(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    rename(tmp_path / "test-000000.tar", b"bg3_fg_1_2.mask.jpg", b"bg3_fg_1_2.musk.jpg")
    seal(tmp_path)
    text = failure(tmp_path)
    assert "test-000000.tar: bg3_fg_1_2: bg3_fg_1_2.mask.jpg: the tar has 'bg3_fg_1_2.musk.jpg' in its place" in text
    assert "1 finding in 1 file" in text


def test_a_member_that_the_index_leaves_out(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = tmp_path / "test-000000.idx"
    index.write_text(re.sub(r" mask.jpg \d+ \d+ bg3_fg_1_1.mask.jpg", "", index.read_text()))
    seal(tmp_path)
    text = failure(tmp_path)
    assert "'bg3_fg_1_1.mask.jpg' at byte" in text
    assert "is in the tar, but not in the index" in text
    assert "test-000000.tar: bg3_fg_1_1: mask.jpg: expected once in each sample, found 0 times" in text
    assert "2 findings" in text


def test_a_member_that_only_the_index_has(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = tmp_path / "test-000000.idx"
    index.write_text(index.read_text().rstrip() + " txt 99 9 bg3_fg_1_2.txt\n")
    seal(tmp_path)
    text = failure(tmp_path)
    assert "test-000000.tar: bg3_fg_1_2: bg3_fg_1_2.txt: in the index, but not in the tar" in text


def test_something_behind_the_end_of_the_archive(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    with (tmp_path / "test-000000.tar").open("ab") as file:
        file.write((tmp_path / "train-000000.tar").read_bytes())
    seal(tmp_path)
    assert "more follows, which no reader of tars would see" in failure(tmp_path)


def test_an_index_with_another_number_of_samples(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    manifest = tmp_path / "shards.json"
    manifest.write_text(
        manifest.read_text().replace('"samples": 2', '"samples": 1', 3).replace('"samples": 5', '"samples": 4')
    )
    seal(tmp_path)
    text = failure(tmp_path)
    assert "train-000001.idx: lists 2 samples, but the manifest says 1" in text


def test_counts_that_do_not_add_up(data_set: DataSet, tmp_path: Path) -> None:
    data_set.write(tmp_path, packed=9)
    assert "shards.json: says 9 tuples were packed, but its splits have 7" in failure(tmp_path)


@pytest.mark.parametrize("extension", ["fgbg.jpg", "mask.jpg", "json"])
def test_a_sample_that_lacks_a_component(data_set: DataSet, tmp_path: Path, extension: str) -> None:
    del data_set.splits["train"][1]["bg2_fg_1_2"][extension]
    data_set.write(tmp_path)
    text = failure(tmp_path)
    assert f"train-000001.tar: bg2_fg_1_2: {extension}: expected once in each sample, found 0 times" in text
    assert "1 finding in 1 file" in text


@pytest.mark.parametrize(
    ("json_text", "problem"),
    [
        ("[1]", "its json is no JSON object"),
        ("{", "its json is no JSON object"),
        ("[" * 100_000, "its json is no JSON object"),
        ('{"files": "bg1.jpg"}', '"files" in its json is no list of paths'),
    ],
)
def test_json_that_is_no_object(tmp_path: Path, json_text: str, problem: str) -> None:
    data_set = make_data_set()
    data_set.splits["train"][0][FIRST]["json"] = json_text.encode()
    data_set.write(tmp_path)
    assert f"train-000000.tar: {FIRST}: {problem}" in failure(tmp_path)


def test_a_key_that_two_shards_have(tmp_path: Path) -> None:
    data_set = make_data_set()
    data_set.splits["test"][0][FIRST] = data_set.splits["train"][0][FIRST]
    data_set.write(tmp_path)
    text = failure(tmp_path)
    assert f"test-000000.tar: {FIRST}: is also in train-000000.tar" in text
    assert "1 finding in 1 file" in text


def test_a_key_that_one_shard_has_twice(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    index = tmp_path / "test-000000.idx"
    index.write_text(index.read_text().replace("bg3_fg_1_2.", "bg3_fg_1_1."))
    rename(tmp_path / "test-000000.tar", b"bg3_fg_1_2.", b"bg3_fg_1_1.")
    seal(tmp_path)
    text = failure(tmp_path)
    assert "test-000000.tar: bg3_fg_1_1: comes twice in this shard" in text
    assert "1 finding in 1 file" in text


def test_equal_hashes_alone_are_no_finding(tmp_path: Path) -> None:
    storage, manifest = open_shards(str(make_data_set().write(tmp_path)))
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    hashes = {shard.file: hash_key(FIRST) * shard.samples for shard in shards}
    assert list(repeated_keys(storage, shards, hashes)) == []


# Backgrounds that are stored once


def test_a_background_that_is_not_there(tmp_path: Path) -> None:
    data_set = make_data_set(shared=True)
    sample = data_set.splits["train"][1]["bg2_fg_1_3"]
    sample["json"] = sample["json"].replace(b'"bg": "bg2"', b'"bg": "bg9"')
    data_set.write(tmp_path)
    text = failure(tmp_path)
    assert "train-000001.tar: bg2_fg_1_3: its background 'bg9' is in none of the shards of backgrounds" in text
    assert "1 finding" in text


def test_of_all_uses_of_a_lost_background_the_first_is_named(tmp_path: Path) -> None:
    data_set = make_data_set(shared=True)
    for samples in data_set.splits["train"]:
        for sample in samples.values():
            sample["json"] = sample["json"].replace(b'"bg": "bg2"', b'"bg": "bg9"')
    data_set.write(tmp_path)
    text = failure(tmp_path)
    assert "train-000000.tar: bg2_fg_1_1: its background 'bg9' is in none" in text
    assert "1 finding in 1 file" in text


def test_a_background_that_is_stored_twice(tmp_path: Path) -> None:
    data_set = make_data_set(shared=True)
    data_set.backgrounds["train"].append({"bg2": data_set.backgrounds["train"][0]["bg2"]})
    data_set.write(tmp_path)
    text = failure(tmp_path)
    assert "train-backgrounds-000001.tar: bg2: is also in train-backgrounds-000000.tar; keys must be unique" in text
    assert "1 finding in 1 file" in text


def test_two_splits_may_have_one_background(tmp_path: Path) -> None:
    data_set = make_data_set(shared=True)
    data_set.backgrounds["test"][0]["bg2"] = data_set.backgrounds["train"][0]["bg2"]
    assert "is whole" in check(data_set.write(tmp_path))


def test_a_background_of_another_split_does_not_count(tmp_path: Path) -> None:
    data_set = make_data_set(shared=True)
    sample = data_set.splits["train"][1]["bg2_fg_1_3"]
    sample["json"] = sample["json"].replace(b'"bg": "bg2"', b'"bg": "bg3"')
    data_set.write(tmp_path)
    assert "its background 'bg3' is in none" in failure(tmp_path)


def test_a_tuple_that_names_no_background(tmp_path: Path) -> None:
    data_set = make_data_set(shared=True)
    data_set.splits["train"][1]["bg2_fg_1_3"]["json"] = b"{}"
    data_set.write(tmp_path)
    assert "train-000001.tar: bg2_fg_1_3: its json names no background" in failure(tmp_path)


def test_a_lost_shard_of_backgrounds_is_one_finding(tmp_path: Path) -> None:
    make_data_set(shared=True).write(tmp_path)
    (tmp_path / "train-backgrounds-000000.tar").unlink()
    text = failure(tmp_path)
    assert "train-backgrounds-000000.tar: no such file" in text
    assert "1 finding in 1 file" in text


def test_a_background_of_another_size(tmp_path: Path) -> None:
    data_set = make_data_set(shared=True)
    data_set.backgrounds["test"][0]["bg3"]["bg.jpg"] = jpeg(3, size=(12, 8))
    data_set.write(tmp_path)
    manifest = tmp_path / "shards.json"
    content = json.loads(manifest.read_text())
    for component in content["components"]:
        component["size"] = None
    manifest.write_text(json.dumps(content))
    assert "is whole" in check(tmp_path)
    text = failure(tmp_path, decode=True)
    assert "test-000000.tar: bg3_fg_1_1: its background 'bg3' has 12×8 pixels, the images on it have 24×16" in text


# Images


@pytest.mark.parametrize("name", list(COMPONENTS))
def test_a_damaged_image_with_the_right_hash_is_found_by_decoding(tmp_path: Path, name: str) -> None:
    data_set = make_data_set()
    sample = data_set.splits["train"][1]["bg2_fg_1_2"]
    sample[f"{name}.jpg"] = sample[f"{name}.jpg"][:-100]
    data_set.write(tmp_path)
    assert "is whole" in check(tmp_path)
    text = failure(tmp_path, decode=True)
    assert f"train-000001.tar: bg2_fg_1_2: {name}.jpg: cannot be decoded: damaged JPEG" in text
    assert "1 finding in 1 file" in text


def test_sizes_that_differ_are_found_by_decoding(tmp_path: Path) -> None:
    data_set = make_data_set()
    data_set.splits["test"][0]["bg3_fg_1_1"]["mask.jpg"] = jpeg(1, "L", (12, 8))
    data_set.write(tmp_path)
    assert "is whole" in check(tmp_path)
    expected = "test-000000.tar: bg3_fg_1_1: mask.jpg: 12×8 pixels, but the manifest says 24×16"
    assert expected in failure(tmp_path, decode=True)
    manifest = tmp_path / "shards.json"
    content = json.loads(manifest.read_text())
    content["components"][3]["size"] = None
    manifest.write_text(json.dumps(content))
    expected = "test-000000.tar: bg3_fg_1_1: mask.jpg: 12×8 pixels, but its bg.jpg has 24×16"
    assert expected in failure(tmp_path, decode=True)


# What is said, and where


def test_files_of_no_manifest_are_a_warning(tmp_path: Path) -> None:
    make_data_set().write(tmp_path)
    for name in ("train-000009.tar", "train-000009.idx", "x.tar.123.partial", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    text = check(tmp_path)
    assert [line.split(":")[1].strip() for line in text.splitlines()[1:]] == [
        "train-000009.idx", "train-000009.tar", "x.tar.123.partial",
    ]  # fmt: skip


def test_long_lists_are_cut_and_whole_in_the_json_file(tmp_path: Path) -> None:
    data_set = make_data_set()
    for number in range(30):
        data_set.splits["test"].append({f"extra{number}": {"json": b"{}"}})
    data_set.splits["test"].append({f"many{number}": {"json": b"{}"} for number in range(9)})
    folder = data_set.write(tmp_path / "shards")
    report = tmp_path / "report.json"
    text = failure(folder, json_file=report)
    assert f"{folder} is not whole: 39 findings in 31 files" in text
    assert len([line for line in text.splitlines() if "expected once in each sample" in line]) == 20
    assert "and 16 more lines" in text
    assert f"The whole report is in {report}." in text
    content = json.loads(report.read_text())
    assert (content["whole"], content["decoded"], content["tuples"], content["shards"]) == (False, False, 46, 34)
    assert len(content["findings"]) == 39
    assert content["findings"][0] == {
        "shard": "test-000001.tar",
        "key": "extra0",
        "problem": "bg.jpg: expected once in each sample, found 0 times",
    }
    data_set.splits["test"] = data_set.splits["test"][-1:]
    shutil.rmtree(folder)
    assert "test-000000.tar: and 4 more" in failure(data_set.write(folder))


def test_the_json_file_of_a_whole_data_set(tmp_path: Path) -> None:
    folder = make_data_set().write(tmp_path / "shards")
    check(folder, decode=True, json_file=tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["whole"], content["decoded"], content["findings"], content["warnings"]) == (True, True, [], [])
    assert content["manifest"] == read_manifest(folder).digest()


def test_a_json_file_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    folder = make_data_set().write(tmp_path / "shards")
    assert "expected the name of a file" in failure(folder, json_file=tmp_path / "no" / "report.json")
    assert "expected the name of a file" in failure(folder, json_file=tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    assert "shards.json: no such file; expected the manifest that" in failure(tmp_path)
    assert "shards.json: no such file" in failure(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "not a valid shards.json" in failure(tmp_path / "file")
    with pytest.raises(UserError, match="runs a command and is refused"):
        check("pipe://cat")
