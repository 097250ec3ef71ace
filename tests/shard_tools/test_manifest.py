"""shards.json is read as data: what is not as it should be is refused with the field's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard_tools.errors import UserError
from shard_tools.manifest import Component, Counts, Manifest, Shard, Split, open_shards, read_manifest


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
    (tmp_path / "shards.json").write_text(manifest.text())
    for read in (read_manifest(tmp_path), read_manifest(tmp_path / "shards.json")):
        assert read == manifest
        assert read.text() == manifest.text()
    for location in (f"{tmp_path}", f"{tmp_path}/", f"{tmp_path}/shards.json", f"file://{tmp_path}"):
        assert open_shards(location)[1] == manifest


def test_backgrounds_that_are_stored_once(manifest: Manifest, tmp_path: Path) -> None:
    """Their shards are listed and count for the digest; a manifest without them says nothing of them."""
    assert "backgrounds" not in json.loads(manifest.text())["splits"]["train"]
    split = manifest.splits["train"].model_copy(update={"backgrounds": (shard("backgrounds-train-000000"),)})
    shared = manifest.model_copy(update={"splits": {"train": split}})
    (tmp_path / "shards.json").write_text(shared.text())
    assert read_manifest(tmp_path) == shared
    assert shared.digest() != manifest.digest()
    assert [shard.file for shard in shared.splits["train"].files][-1] == "backgrounds-train-000000.tar"


def test_a_digest_stays_what_it_was(manifest: Manifest) -> None:
    """Runs remember it: another one would refuse to resume them."""
    assert manifest.digest() == "8fa8e90c6229bfa7b6a950d37abaa5b1142d1de929df1baa6880c3a44f072843"


def test_a_component_under_another_name(manifest: Manifest, tmp_path: Path) -> None:
    """Said only where it is unusual, and then it is another data set."""
    [usual] = manifest.components
    assert usual.member_extension == "bg.jpg"
    assert "member" not in json.loads(manifest.text())["components"][0]
    same = Component(name="bg", extension="jpg", mode="RGB", size=(24, 16), member="bg.jpg")
    assert same == usual
    other = Component(name="bg", extension="jpg", mode="RGB", size=(24, 16), member="clean.jpeg")
    assert other.member_extension == "clean.jpeg"
    changed = manifest.model_copy(update={"components": (other,)})
    (tmp_path / "shards.json").write_text(changed.text())
    assert read_manifest(tmp_path) == changed
    assert changed.digest() != manifest.digest()


def test_adopted_shards(manifest: Manifest, tmp_path: Path) -> None:
    assert "adopted" not in json.loads(manifest.text())
    adopted = manifest.model_copy(update={"adopted": True})
    (tmp_path / "shards.json").write_text(adopted.text())
    assert read_manifest(tmp_path) == adopted
    assert adopted.digest() == manifest.digest()


def test_the_text_of_a_manifest_stays_what_it_was(manifest: Manifest) -> None:
    """A build that is run again compares it."""
    assert list(json.loads(manifest.text())) == ["format", "version", "components", "splits", "counts", "build"]
    assert list(json.loads(manifest.text())["components"][0]) == ["name", "extension", "mode", "size"]


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
        (_set("components", 0, "member", "../bg.jpg"), r"components\.0\.member"),
        (_set("components", 0, "member", "a b.jpg"), r"components\.0\.member"),
        (_set("components", 0, "member", ""), r"components\.0\.member"),
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


@pytest.mark.parametrize("command", ["pipe://touch it", "pipe:touch it", "pipe:/touch it", "shell://touch it"])
def test_no_command_is_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs a command and is refused|no such file"):
        read_manifest(command)
    assert list(tmp_path.iterdir()) == []
