"""Places for objects: whole files go in under their names, and folders can be listed."""

import os
from pathlib import Path

import pytest

from shard_tools.errors import UserError
from shard_tools.storage import LocalStorage, RemoteStorage, Storage, open_storage


@pytest.fixture(params=["folder", "file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A place where nothing is yet."""
    if request.param == "folder":
        return LocalStorage(tmp_path / "place")
    return open_storage(f"{request.param}://{tmp_path}/place")


def test_a_file_is_uploaded_whole_and_replaces_what_was_there(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for data in (os.urandom(3 * 2**20 + 5), b"", b"short"):
        source.write_bytes(data)
        storage.upload("step-1/model", source)
        assert storage.read("step-1/model") == data
        assert storage.size("step-1/model") == len(data)
        assert source.read_bytes() == data
    assert storage.names("step-1") == {"model"}


def test_a_file_that_is_not_there_is_not_uploaded(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.upload("step-1/model", tmp_path / "gone")
    assert storage.names("step-1") == set()


def test_folders_are_listed_without_objects_and_what_lies_deeper(storage: Storage) -> None:
    assert storage.folders() == set()
    storage.write("shards.json", "{}")
    assert storage.folders() == set()
    for name in ("step-1/model", "step-1/deeper/x", "step-2/model", "a b/y"):
        storage.write(name, name)
    assert storage.folders() == {"step-1", "step-2", "a b"}
    assert storage.names() == {"shards.json"}
    storage.remove_folder("step-1")
    assert storage.folders() == {"step-2", "a b"}


def test_folders_that_others_make_meanwhile_are_seen(storage: Storage) -> None:
    other = open_storage(storage.location)
    assert storage.folders() == set()
    other.write("step-1/model", "x")
    assert storage.folders() == {"step-1"}


def test_a_place_that_cannot_be_reached() -> None:
    storage = RemoteStorage("http://127.0.0.1:1/place")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/place: cannot be listed: .*check the address"):
        storage.folders()
