"""shards.json is read as data: what is not as it should be is refused with the field's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard_tools.errors import UserError
from shard_tools.manifest import Component, Counts, Manifest, Shard, Split, read_manifest


def shard(name: str, samples: int = 3) -> Shard:
    return Shard(
        file=f"{name}.tar",
        samples=samples,
        bytes=2048,
        sha256="0" * 64,
        index=f"{name}.idx",
        index_sha256="1" * 64,
    )


@pytest.fixture
def manifest() -> Manifest:
    shards = (shard("train-000000"), shard("train-000001", 2))
    return Manifest(
        components=(Component(name="bg", extension="jpg", mode="RGB", size=(24, 16)),),
        splits={"train": Split(samples=5, shards=shards)},
        counts=Counts(found=6, packed=5, left_out=1),
        build={"seed": 0},
    )


def test_round_trip(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert read_manifest(tmp_path / "shards.json") == manifest
    first = (tmp_path / "shards.json").read_bytes()
    manifest.write(tmp_path)
    assert (tmp_path / "shards.json").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards.json"]


def test_digest_is_of_the_samples_alone(manifest: Manifest) -> None:
    assert manifest.model_copy(update={"build": {"seed": 9}}).digest() == manifest.digest()
    fewer = manifest.model_copy(update={"splits": {"train": Split(samples=3, shards=(shard("train-000000"),))}})
    assert fewer.digest() != manifest.digest()


def test_unknown_names_are_refused_with_the_known_ones(manifest: Manifest) -> None:
    with pytest.raises(UserError, match="no component 'albedo'; they have: bg"):
        manifest.component("albedo")
    with pytest.raises(UserError, match="no split 'test'; it has: train"):
        manifest.split("test")


def _set(*path: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *parents, last, value = path
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("splits", "train", "shards", 0, "file", "../train.tar"), r"shards\.0\.file.*not a plain file name"),
        (_set("splits", "train", "shards", 0, "file", "pipe:cat x"), r"shards\.0\.file.*not a plain file name"),
        (_set("splits", "train", "shards", 0, "file", "train-000001.tar"), "train-000001.tar: listed more than once"),
        (_set("splits", "train", "shards", 0, "samples", 4), "hold 6 samples, but it says samples=5"),
        (_set("splits", "train", "shards", 0, "samples", "3"), r"shards\.0\.samples"),
        (_set("splits", "train", "shards", 0, "sha256", "abc"), r"shards\.0\.sha256"),
        (_set("version", 2), "version"),
        (_set("surprise", 1), "surprise"),
    ],
)
def test_a_wrong_field_is_named(
    manifest: Manifest, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    content = json.loads(manifest.model_dump_json())
    change(content)
    (tmp_path / "shards.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_missing_file_says_how_it_comes_about(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards\.json: no such file; expected the manifest that `shard-tools build"):
        read_manifest(tmp_path)


def test_text_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_text("{")
    with pytest.raises(UserError, match=r"not a valid shards\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("url", ["s3://bucket/shards.json", "http://host/shards.json", "pipe:cat shards.json"])
def test_addresses_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="only local manifests can be read"):
        read_manifest(Path(url))
