"""Shards are plain: GNU tar, webdataset and Hugging Face datasets read them as they are."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset
from PIL import Image

from shard_tools.manifest import read_manifest

from .packing import keys, pack

MakeTree = Callable[..., Path]
COMPONENTS = ("bg", "fgbg", "depth", "mask")


@pytest.fixture
def packed(make_tree: MakeTree, tmp_path: Path) -> tuple[Path, Path]:
    """A source, and shards of it."""
    source, out = make_tree(), tmp_path / "out"
    pack(source, out)
    return source, out


def shard_files(out: Path) -> list[str]:
    return [str(out / shard.file) for split in read_manifest(out).splits.values() for shard in split.shards]


def files_of(source: Path, metadata: dict[str, list[str]]) -> dict[str, bytes]:
    return {name: (source / file).read_bytes() for name, file in zip(COMPONENTS, metadata["files"], strict=True)}


def test_gnu_tar_lists_and_extracts(packed: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = packed
    (tmp_path / "extracted").mkdir()
    for file in shard_files(out):
        listed = subprocess.run(["tar", "tf", file], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        subprocess.run(["tar", "xf", file, "-C", tmp_path / "extracted"], check=True, capture_output=True)
    for key in keys(out):
        metadata = json.loads((tmp_path / "extracted" / f"{key}.json").read_text())
        for name, data in files_of(source, metadata).items():
            assert (tmp_path / "extracted" / f"{key}.{name}.jpg").read_bytes() == data


def test_webdataset_streams_and_decodes(packed: tuple[Path, Path]) -> None:
    source, out = packed
    read = {s["__key__"]: s for s in webdataset.WebDataset(shard_files(out), shardshuffle=False).decode("pil")}
    assert list(read) == keys(out)
    for sample in read.values():
        for name, file in zip(COMPONENTS, sample["json"]["files"], strict=True):
            expected = np.asarray(Image.open(source / file).convert("RGB"))
            assert np.array_equal(np.asarray(sample[f"{name}.jpg"]), expected)


def test_hugging_face_datasets_loads_and_streams(
    packed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = packed
    files = {"train": str(out / "train-*.tar"), "test": str(out / "test-*.tar")}
    for streaming in (False, True):
        found = datasets.load_dataset(
            "webdataset", data_files=files, streaming=streaming, cache_dir=str(tmp_path / "cache")
        )
        rows = [row for split in ("train", "test") for row in found[split]]
        assert [row["__key__"] for row in rows] == keys(out)
        for row in rows[::7]:
            for name, file in zip(COMPONENTS, row["json"]["files"], strict=True):
                expected = np.asarray(Image.open(source / file))
                assert np.array_equal(np.asarray(row[f"{name}.jpg"]), expected)
