"""`shard-tools info` and `ls` say what is in the shards, in a form that other commands can cut and search."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from shard_tools.errors import UserError
from shard_tools.info import info, ls
from shard_tools.manifest import read_manifest

from .shards import COMPONENTS, make_data_set

KEYS = ["bg1_fg_1_1", "bg1_fg_1_2", "bg2_fg_1_1", "bg2_fg_1_2", "bg2_fg_1_3", "bg3_fg_1_1", "bg3_fg_1_2"]


def lines(folder: Path | str, *, split: str | None = None, long: bool = False) -> list[str]:
    return list(ls(str(folder), split=split, long=long))


@pytest.mark.parametrize("ending", ["", "/", "/shards.json"])
def test_info_says_what_the_manifest_holds(tmp_path: Path, ending: str) -> None:
    folder = make_data_set().write(tmp_path)
    text = info(f"{folder}{ending}").splitlines()
    assert text[0] == f"{folder}: 7 tuples in 3 shards, 0.1 MB"
    assert text[1] == "of 8 tuples found, 7 packed and 1 left out"
    rows = [line.split() for line in text]
    assert ["train", "5", "2", "2", "to", "3", "0.0", "MB"] in rows
    assert ["test", "2", "1", "2", "0.0", "MB"] in rows
    assert ["depth", "jpg", "L", "24", "×", "16"] in rows
    assert "backgrounds: in each tuple" in text
    assert "built with: layout=nested, source=photos, seed=0" in text
    assert f"identity: {read_manifest(folder).digest()}" in text


def test_info_of_shared_backgrounds_and_several_sizes(tmp_path: Path) -> None:
    folder = make_data_set(shared=True).write(tmp_path)
    manifest = folder / "shards.json"
    content = json.loads(manifest.read_text())
    content["components"][3]["size"] = None
    manifest.write_text(json.dumps(content))
    text = info(str(folder))
    assert f"{folder}: 7 tuples in 5 shards" in text
    assert "backgrounds: stored once in each split: 3 in 2 shards" in text
    assert ["mask", "jpg", "L", "several"] in [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("ending", ["", "/", "/shards.json"])
def test_ls_is_in_packing_order(tmp_path: Path, ending: str) -> None:
    folder = make_data_set().write(tmp_path)
    files = ["train-000000.tar"] * 3 + ["train-000001.tar"] * 2 + ["test-000000.tar"] * 2
    splits = ["train"] * 5 + ["test"] * 2
    expected = ["\t".join(row) for row in zip(KEYS, splits, files, strict=True)]
    assert lines(f"{folder}{ending}") == expected
    assert lines(f"{folder}{ending}", split="test") == expected[5:]


def test_ls_reads_only_the_indexes(tmp_path: Path) -> None:
    folder = make_data_set().write(tmp_path)
    for tar in folder.glob("*.tar"):
        tar.unlink()
    assert len(lines(folder)) == 7
    with pytest.raises(UserError, match=r"train-000000\.tar: cannot be read: No such file or directory"):
        lines(folder, long=True)


@pytest.mark.parametrize("shared", [False, True])
def test_ls_long_has_sizes_and_metadata(tmp_path: Path, shared: bool) -> None:
    data_set = make_data_set(shared=shared)
    folder = data_set.write(tmp_path)
    rows = [line.split("\t") for line in lines(folder, long=True)]
    samples = {key: sample for shards in data_set.splits.values() for shard in shards for key, sample in shard.items()}
    assert [row[0] for row in rows] == KEYS
    for key, _, _, *sizes, metadata in rows:
        expected = [samples[key].get(f"{name}.jpg") for name in COMPONENTS]
        assert sizes == ["-" if data is None else str(len(data)) for data in expected]
        assert sizes[0] == "-" or not shared
        assert json.loads(metadata) == json.loads(samples[key]["json"])


def test_ls_long_keeps_metadata_in_one_line(tmp_path: Path) -> None:
    data_set = make_data_set()
    sample = data_set.splits["test"][0]["bg3_fg_1_1"]
    sample["json"] = json.dumps({"text": "tab\there, Küche", "n": [1, 2]}, indent=2).encode()
    line = lines(data_set.write(tmp_path), split="test", long=True)[0]
    assert line.endswith('\t{"text": "tab\\there, Küche", "n": [1, 2]}')


def test_wrong_arguments(tmp_path: Path) -> None:
    folder = make_data_set().write(tmp_path / "shards")
    for command in (info, lambda place: ls(place, split=None, long=False)):
        with pytest.raises(UserError, match=r"shards\.json: no such file; expected the manifest"):
            command(str(tmp_path))
        with pytest.raises(UserError, match=r"not a valid shards\.json"):
            command(str(folder / "test-000000.tar"))
    with pytest.raises(UserError, match="no split 'val'; it has: train, test"):
        ls(str(folder), split="val", long=False)


def test_damage_is_named(tmp_path: Path) -> None:
    data_set = make_data_set()
    data_set.splits["test"][0]["bg3_fg_1_2"]["json"] = b"[]"
    folder = data_set.write(tmp_path)
    with pytest.raises(UserError, match=r"test-000000\.tar: sample 'bg3_fg_1_2': its json is no JSON object"):
        lines(folder, long=True)
    (folder / "test-000000.idx").write_text("")
    with pytest.raises(UserError, match=r"test-000000\.idx: is not the index that the manifest names"):
        lines(folder)


def test_a_remote_place(tmp_path: Path) -> None:
    folder = make_data_set().write(tmp_path)
    fsspec.filesystem("memory").put(f"{folder}/", "/info/", recursive=True)
    assert info("memory://info").startswith("memory://info: 7 tuples in 3 shards")
    assert lines("memory://info/shards.json", long=True) == lines(folder, long=True)


def ls_process(folder: Path) -> list[str]:
    call = f"print_lines(ls({str(folder)!r}, split=None, long=True))"
    return [sys.executable, "-c", f"from shard_tools.info import ls, print_lines; {call}"]


def test_a_pipe_that_is_closed_early_is_no_error(tmp_path: Path) -> None:
    data_set = make_data_set()
    sample = data_set.splits["test"][0]["bg3_fg_1_1"]
    data_set.splits["test"].append({f"key{number}": {"json": sample["json"]} for number in range(5000)})
    process = subprocess.Popen(
        ls_process(data_set.write(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline().startswith("bg1_fg_1_1\ttrain\t")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 0


def test_text_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    data_set = make_data_set()
    data_set.splits["train"][0]["bg1_fg_1_1"]["json"] = json.dumps({"files": ["Küche\udcff.jpg"]}).encode()
    done = subprocess.run(
        ls_process(data_set.write(tmp_path)), capture_output=True, check=False, env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.stderr == b""
    assert b"K\\xfcche\\udcff.jpg" in done.stdout.splitlines()[0]
