"""`shard-tools unpack` gives back the source byte for byte, after any kill, and writes nothing outside its folder."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from shard_tools.errors import UserError
from shard_tools.unpack import unpack
from shard_tools.verify import verify

from .packing import content
from .shards import DataSet, jpeg, make_data_set, seal, source_tree

KEY = "bg1_fg_1_1"


def unpacked(folder: Path | str, out: Path, *, split: str | None = None, workers: int = 1) -> str:
    return unpack(str(folder), out, split=split, workers=workers)


def refusal(folder: Path | str, out: Path, *, split: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        unpacked(folder, out, split=split)
    return str(caught.value)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(params=["sample", "shared"])
def data_set(request: pytest.FixtureRequest) -> DataSet:
    return make_data_set(shared=request.param == "shared")


# What comes out


@pytest.mark.parametrize("workers", [1, 2])
def test_the_source_comes_back_byte_for_byte(data_set: DataSet, tmp_path: Path, out: Path, workers: int) -> None:
    folder = data_set.write(tmp_path / "shards")
    text = unpacked(folder, out, workers=workers)
    assert content(out) == source_tree()
    shards = 5 if data_set.backgrounds else 3
    assert text == f"{out}: 7 tuples from {shards} shards unpacked, {len(source_tree())} files written"


@pytest.mark.parametrize("backgrounds", ["sample", "shared"])
def test_what_build_packed_comes_back(
    make_tree: Callable[..., Path],
    shard_tools: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    out: Path,
    backgrounds: str,
) -> None:
    source, shards = make_tree(), tmp_path / "shards"
    built = shard_tools("build", source, shards, "--shard-size", 7, "--backgrounds", backgrounds)
    assert built.returncode == 0, built.stderr
    assert "is whole" in verify(str(shards), decode=True, workers=1, json_file=None)
    unpacked(shards, out)
    assert content(out) == content(source)


def test_what_build_encoded_anew_comes_back_under_its_new_suffix(
    make_tree: Callable[..., Path],
    shard_tools: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    out: Path,
) -> None:
    source, shards = make_tree(), tmp_path / "shards"
    built = shard_tools("build", source, shards, "--size", 8)
    assert built.returncode == 0, built.stderr
    assert "is whole" in verify(str(shards), decode=True, workers=1, json_file=None)
    unpacked(shards, out)
    masks = {name for name in content(source) if "/mask/" in name}
    others = content(source).keys() - masks
    assert content(out).keys() == others | {name.replace(".jpg", ".png") for name in masks}


def test_one_split(data_set: DataSet, tmp_path: Path, out: Path) -> None:
    folder = data_set.write(tmp_path / "shards")
    unpacked(folder, out, split="test")
    assert content(out) == {path: data for path, data in source_tree().items() if path.startswith(("bg/bg3.", "bg3/"))}
    assert "no split 'val'; it has: train, test" in refusal(folder, tmp_path / "other", split="val")
    assert not (tmp_path / "other").exists()


def test_samples_that_do_not_say_where_they_lay(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set(files=False)
    text = unpacked(data_set.write(tmp_path / "shards"), out)
    assert content(out) == {
        f"{key}.{extension}": data
        for shards in data_set.splits.values()
        for samples in shards
        for key, sample in samples.items()
        for extension, data in sample.items()
    }
    assert "7 samples do not say where their images lay" in text


def test_shared_backgrounds_that_do_not_say_where_they_lay(tmp_path: Path, out: Path) -> None:
    unpacked(make_data_set(shared=True, files=False).write(tmp_path / "shards"), out)
    tree = content(out)
    assert tree["bg2.bg.jpg"] == jpeg(2)
    assert json.loads(tree["bg2_fg_1_3.json"])["bg"] == "bg2"
    assert sorted(name for name in tree if name.startswith("bg2_fg_1_3")) == [
        "bg2_fg_1_3.depth.jpg", "bg2_fg_1_3.fgbg.jpg", "bg2_fg_1_3.json", "bg2_fg_1_3.mask.jpg",
    ]  # fmt: skip


def test_the_suffix_is_that_of_what_is_stored(tmp_path: Path, out: Path) -> None:
    """As where masks were encoded anew as PNG; .JPG and .jpeg are what a jpg may be called."""
    data_set = make_data_set()
    sample = set_files(data_set, ["a.jpeg", "b.JPG", "c.png", "d"])
    unpacked(data_set.write(tmp_path / "shards"), out, split="train")
    tree = content(out)
    assert [tree[name] for name in ("a.jpeg", "b.JPG", "c.jpg", "d.jpg")] == list(sample.values())[:4]


def test_members_that_are_no_component_are_not_lost(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set()
    data_set.splits["test"][0]["bg3_fg_1_1"]["caption.txt"] = b"a chair"
    unpacked(data_set.write(tmp_path / "shards"), out)
    assert content(out) == {**source_tree(), "bg3_fg_1_1.caption.txt": b"a chair"}


def test_names_that_are_not_ascii(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set()
    names = ["Küche mit Tür.jpg", "\udcff.jpg", "日本/b.jpg", "line\nbreak.jpg"]
    sample = set_files(data_set, names)
    unpacked(data_set.write(tmp_path / "shards"), out, split="train")
    assert [(out / name).read_bytes() for name in names] == list(sample.values())[:4]


def test_a_remote_place(tmp_path: Path, out: Path) -> None:
    make_data_set(shared=True).write(tmp_path / "shards")
    fsspec.filesystem("memory").put(f"{tmp_path}/shards/", "/unpack/", recursive=True)
    unpacked("memory://unpack/shards.json", out)
    assert content(out) == source_tree()


# Interruptions


def process_that_unpacks(folder: Path, out: Path) -> list[str]:
    call = f"unpack({str(folder)!r}, Path({str(out)!r}), split=None, workers=1)"
    return [sys.executable, "-c", f"from pathlib import Path; from shard_tools.unpack import unpack; {call}"]


def test_a_killed_unpack_is_finished_by_the_same_call(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set()
    template = data_set.splits["train"][0][KEY]
    images = {name: data for name, data in template.items() if name != "json"}
    for shard in range(4):
        samples = {}
        for k in range(400):
            files = [f"bg/1-{shard}.jpg", *(f"{shard}/{name}/{k}.jpg" for name in ("overlay", "depth", "mask"))]
            samples[f"key{shard}_{k}"] = {**images, "json": json.dumps({"files": files}).encode()}
        data_set.splits["train"].append(samples)
    folder = data_set.write(tmp_path / "shards")
    whole = tmp_path / "whole"
    unpacked(folder, whole)
    process = subprocess.Popen(process_that_unpacks(folder, out), stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (out / "1/mask/50.jpg").exists() and time.monotonic() < limit:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (out / ".unpack/state.json").exists()
    begun = {name: data for name, data in content(out).items() if not name.startswith(".unpack")}
    assert 0 < len(begun) < len(content(whole))
    assert begun.items() <= content(whole).items()
    assert "the others were there from an earlier run" in unpacked(folder, out)
    assert content(out) == content(whole)


def interrupted(data_set: DataSet, folder: Path, out: Path) -> None:
    """Leaves what a run leaves that stopped at a damaged shard."""
    data_set.write(folder)
    good = (folder / "test-000000.tar").read_bytes()
    (folder / "test-000000.tar").write_bytes(good[:-1])
    assert "damaged, or another file" in refusal(folder, out)
    (folder / "test-000000.tar").write_bytes(good)
    assert (out / "bg/bg1.jpg").exists()


def test_a_file_that_lost_its_content_with_the_power_is_written_again(tmp_path: Path, out: Path) -> None:
    interrupted(make_data_set(), tmp_path / "shards", out)
    os.truncate(out / "bg/bg1.jpg", 0)
    unpacked(tmp_path / "shards", out)
    assert content(out) == source_tree()


@pytest.mark.parametrize("mine", [b"mine", bytes(len(jpeg(1)))])
def test_a_file_that_was_changed_in_between_is_refused(tmp_path: Path, out: Path, mine: bytes) -> None:
    interrupted(make_data_set(), tmp_path / "shards", out)
    (out / "bg/bg1.jpg").write_bytes(mine)
    text = refusal(tmp_path / "shards", out)
    assert f"sample '{KEY}': {out / 'bg/bg1.jpg'}: is there already with other content" in text
    assert (out / "bg/bg1.jpg").read_bytes() == mine


def test_something_else_in_the_place_of_a_file_is_refused(tmp_path: Path, out: Path) -> None:
    interrupted(make_data_set(), tmp_path / "shards", out)
    os.mkfifo(out / "bg/bg3.jpg")
    assert f"{out / 'bg/bg3.jpg'}: is there already" in refusal(tmp_path / "shards", out)
    assert (out / "bg/bg3.jpg").is_fifo()


def test_another_data_set_is_refused_until_the_first_is_finished(tmp_path: Path, out: Path) -> None:
    interrupted(make_data_set(), tmp_path / "shards", out)
    other = make_data_set(files=False).write(tmp_path / "other")
    assert "another data set is being unpacked there" in refusal(other, out)
    assert "another data set is being unpacked there" in refusal(tmp_path / "shards", out, split="train")


# What is refused


def set_files(data_set: DataSet, files: list[str]) -> dict[str, bytes]:
    sample = data_set.splits["train"][0][KEY]
    sample["json"] = json.dumps({"files": files}).encode()
    return sample


@pytest.mark.parametrize(
    "path",
    [
        "../x.jpg", "a/../../x.jpg", "a/..", "/tmp/x.jpg", "//x.jpg", "..\\x.jpg", "a\\b.jpg", "C:/x.jpg", "c:x.jpg",
        "", ".", "/", "a\0b.jpg", "\ud800.jpg", ".unpack/state.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 3])
def test_paths_that_leave_the_folder(tmp_path: Path, path: str, place: int) -> None:
    data_set = make_data_set()
    files = ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    files[place] = path
    set_files(data_set, files)
    folder = data_set.write(tmp_path / "shards")
    inner = tmp_path / "outer/out"
    inner.parent.mkdir()
    text = refusal(folder, inner)
    assert f"{folder}/train-000000.tar: sample '{KEY}': the path {path!r} is refused" in text
    assert [entry.name for entry in inner.parent.iterdir()] == ["out"]
    assert not (inner / "1.jpg").exists()


@pytest.mark.parametrize("key", ["../key", "/tmp/key", "a\\key"])
def test_keys_that_leave_the_folder(tmp_path: Path, key: str) -> None:
    data_set = make_data_set(files=False)
    data_set.splits["train"][0] = {key: data_set.splits["train"][0][KEY]}
    folder = data_set.write(tmp_path / "shards")
    (tmp_path / "outer").mkdir()
    assert "is refused" in refusal(folder, tmp_path / "outer/out")
    assert [entry.name for entry in (tmp_path / "outer").iterdir()] == ["out"]
    assert not Path("/tmp/key.bg.jpg").exists()


@pytest.mark.parametrize("target", ["folder", "file"])
def test_symbolic_links_are_not_followed(tmp_path: Path, out: Path, target: str) -> None:
    interrupted(make_data_set(), tmp_path / "shards", out)
    elsewhere = tmp_path / "elsewhere"
    if target == "folder":
        elsewhere.mkdir()
        (out / "bg3").symlink_to(elsewhere)
    else:
        (out / "bg/bg3.jpg").symlink_to(elsewhere)
    text = refusal(tmp_path / "shards", out)
    assert "test-000000.tar: sample 'bg3_fg_1_1': " in text
    assert not elsewhere.is_file()
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


def test_a_folder_and_a_file_of_one_name(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set()
    set_files(data_set, ["a.jpg", "a.jpg/b.jpg", "c.jpg", "d.jpg"])
    text = refusal(data_set.write(tmp_path / "shards"), out)
    assert f"{out / 'a.jpg'}: expected a folder there; it is a file or a symbolic link" in text


def test_two_contents_for_one_path(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set()
    data_set.splits["train"][1]["bg2_fg_1_3"]["bg.jpg"] = jpeg(99)
    folder = data_set.write(tmp_path / "shards")
    text = refusal(folder, out)
    assert "train-000001.tar: sample 'bg2_fg_1_3': " in text
    assert f"{out / 'bg/bg2.jpg'}: is there already with other content: another sample has the same path" in text


def test_two_contents_for_one_path_in_one_sample(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set()
    set_files(data_set, ["a.jpg", "a.jpg", "c.jpg", "d.jpg"])
    assert "is there already with other content" in refusal(data_set.write(tmp_path / "shards"), out)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"files": ["a.jpg"]}, '"files" in its json lists 1 paths; expected 4'),
        ({"files": "a.jpg"}, '"files" in its json is no list of paths'),
        ({"files": [1, 2, 3, 4]}, '"files" in its json is no list of paths'),
        ([], "its json is no JSON object"),
    ],
)
def test_metadata_of_another_kind(tmp_path: Path, out: Path, metadata: object, problem: str) -> None:
    data_set = make_data_set()
    data_set.splits["train"][0][KEY]["json"] = json.dumps(metadata).encode()
    assert f"sample '{KEY}': {problem}" in refusal(data_set.write(tmp_path / "shards"), out)


def test_a_damaged_shard_is_not_unpacked(tmp_path: Path, out: Path) -> None:
    folder = make_data_set().write(tmp_path / "shards")
    data = bytearray((folder / "train-000000.tar").read_bytes())
    data[700] ^= 1
    (folder / "train-000000.tar").write_bytes(data)
    text = refusal(folder, out)
    assert f"{folder}/train-000000.tar: damaged, or another file (its SHA-256 is not the one in the manifest)" in text
    assert list(content(out)) == [".unpack/state.json"]


def test_a_missing_shard(tmp_path: Path, out: Path) -> None:
    folder = make_data_set().write(tmp_path / "shards")
    (folder / "train-000001.tar").unlink()
    assert f"{folder}/train-000001.tar: no such file, but the manifest lists it" in refusal(folder, out)
    (folder / "train-000001.tar").mkdir()
    assert f"{folder}/train-000001.tar: cannot be read: Is a directory" in refusal(folder, out)


def test_an_index_that_points_beyond_the_shard(tmp_path: Path, out: Path) -> None:
    folder = make_data_set().write(tmp_path / "shards")
    index = folder / "train-000000.idx"
    index.write_text(index.read_text().replace("bg.jpg 512 ", f"bg.jpg {2**62} ", 1))
    seal(folder)
    assert f"sample {KEY!r} lies beyond the end of train-000000.tar" in refusal(folder, out)


def test_a_background_that_no_shard_holds(tmp_path: Path, out: Path) -> None:
    data_set = make_data_set(shared=True)
    del data_set.backgrounds["train"][0]["bg2"]
    folder = data_set.write(tmp_path / "shards")
    assert "1 backgrounds of the tuples are in none of the shards of backgrounds, the first 'bg2'" in refusal(
        folder, out
    )
    assert (out / ".unpack").exists()


def test_out_has_to_be_empty_or_new(tmp_path: Path, out: Path) -> None:
    folder = make_data_set().write(tmp_path / "shards")
    out.mkdir()
    unpacked(folder, out)
    before = content(out)
    assert "expected an empty or a new folder, or one that this command began" in refusal(folder, out)
    assert content(out) == before
    (tmp_path / "file").write_text("")
    assert "it is a file" in refusal(folder, tmp_path / "file")
    assert "expected a folder on this machine" in refusal(folder, Path("s3://bucket/tree"))
    assert "Not a directory" in refusal(folder, tmp_path / "file/out")


def test_a_full_disk_is_one_message(tmp_path: Path, out: Path) -> None:
    """A limit on the size of files stands in for the disk: write() fails in the same way."""
    folder = make_data_set().write(tmp_path / "shards")
    done = subprocess.run(
        process_that_unpacks(folder, out),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
    )
    assert "cannot write there (File too large); expected a folder that you may write to" in done.stderr
    assert list(content(out)) == [".unpack/state.json"]
    unpacked(folder, out)
    assert content(out) == source_tree()


def test_no_manifest(tmp_path: Path, out: Path) -> None:
    assert "shards.json: no such file" in refusal(tmp_path, out)
    assert not out.exists()
