"""Checkpoints behind a URL: whole or none, and enough to go on from on any machine."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import pytest
import s3fs
import torch

from dtrain.bucket import Bucket
from dtrain.checkpoint import CancelledError, Checkpoint, checkpoint_name, save_checkpoint, verify
from dtrain.saver import Saver
from shard_tools.errors import UserError
from shard_tools.storage import open_storage

from ..servers import Fault, SpoilingProxy, point_to_s3, s3_server
from .crash_disk import Tree, read_tree
from .crash_scenario import Process, checkpoint, make_config, metrics
from .test_checkpoint import contents

FILES = {"model.safetensors", "optimizer.safetensors", "state.json", "files.json"}
EVENTS = b'{"event": "start"}\n'


class Place:
    """A folder behind a URL, seen without our own code."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bucket = Bucket(open_storage(url))

    def objects(self) -> dict[str, set[str]]:
        """The names of the objects in each folder."""
        fs, root = self._fs()
        found: dict[str, set[str]] = {}
        for path in fs.find(root):
            folder, name = path.removeprefix(f"{root}/").split("/")
            found.setdefault(folder, set()).add(name)
        return found

    def read(self, name: str) -> bytes:
        fs, root = self._fs()
        return bytes(fs.cat_file(f"{root}/{name}"))

    def change(self, name: str) -> None:
        """Give an object one other byte, as a disk or a network may."""
        fs, root = self._fs()
        data = bytearray(fs.cat_file(f"{root}/{name}"))
        data[-1] ^= 1
        fs.pipe_file(f"{root}/{name}", bytes(data))

    def delete(self, name: str) -> None:
        fs, root = self._fs()
        fs.rm_file(f"{root}/{name}")

    def _fs(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = fsspec.core.url_to_fs(self.url)
        fs.invalidate_cache()
        return fs, root


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what fails nothing is tried again."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    point_to_s3(address, monkeypatch)


@pytest.fixture
def remote(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    """An empty folder on an S3 server."""
    point_to(server, monkeypatch)
    name = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    fsspec.filesystem("s3").mkdir(f"s3://{name}")
    return Place(f"s3://{name}/runs/one")


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder on a disk or on an S3 server."""
    if request.param == "s3":
        found: Place = request.getfixturevalue("remote")
        return found
    return Place(f"file://{tmp_path}/disk/one")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Whole checkpoints of the steps 4, 8 and 12."""
    for step in (4, 8, 12):
        save_checkpoint(tmp_path / "local", step, checkpoint(step, make_config(tmp_path / "run")))
    return tmp_path / "local"


@pytest.fixture
def log(tmp_path: Path) -> list[Path]:
    """Metrics up to step 13, and events."""
    (tmp_path / "metrics.jsonl").write_bytes(metrics(13))
    (tmp_path / "events.jsonl").write_bytes(EVENTS)
    return [tmp_path / "metrics.jsonl", tmp_path / "events.jsonl"]


def upload(place: Place, local: Path, log: list[Path], *steps: int) -> None:
    for step in steps:
        place.bucket.upload(local / checkpoint_name(step), log, lambda: False)


def objects_of(*steps: int) -> dict[str, set[str]]:
    return {checkpoint_name(step): FILES | {"metrics.jsonl", "events.jsonl"} for step in steps}


def test_what_is_uploaded_comes_back(place: Place, local: Path, log: list[Path], tmp_path: Path) -> None:
    assert place.bucket.steps() == []
    upload(place, local, log, 8, 4)
    assert place.bucket.steps() == [8, 4]
    assert place.bucket.path(8) == f"{place.url.removeprefix('file://')}/step-00000008"
    assert place.objects() == objects_of(8, 4)
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert place.bucket.download(8, fetched)
    expected: Tree = {path.name: path.read_bytes() for path in log}
    assert read_tree(fetched) == {**read_tree(local / "step-00000008"), **expected}


def test_it_counts_only_when_its_list_of_files_is_there(
    place: Place, local: Path, log: list[Path], tmp_path: Path
) -> None:
    upload(place, local, log, 4, 8)
    place.delete("step-00000008/files.json")
    folder = tmp_path / "fetched"
    folder.mkdir()
    assert not place.bucket.download(8, folder)
    assert not place.bucket.download(12, folder)
    assert read_tree(folder) == {}
    process = Process(tmp_path / "run", place.bucket)
    process.end()
    assert process.start.state["global_step"] == 4
    upload(place, local, log, 8)
    assert place.objects() == objects_of(4, 8)


def test_an_upload_that_is_not_wanted_any_more_never_counts(place: Place, local: Path, log: list[Path]) -> None:
    """Given up before each of its files in turn."""
    for wanted in range(6):
        answers = iter([False] * wanted + [True])
        with pytest.raises(CancelledError):
            place.bucket.upload(local / "step-00000008", log, answers.__next__)
        there = place.objects().get("step-00000008", set())
        assert len(there) == wanted
        assert "files.json" not in there
    upload(place, local, log, 8)
    assert place.objects() == objects_of(8)


def test_one_that_is_there_is_not_uploaded_again(place: Place, local: Path, log: list[Path]) -> None:
    upload(place, local, log, 8)
    place.delete("step-00000008/events.jsonl")
    upload(place, local, log, 8)
    assert "events.jsonl" not in place.objects()["step-00000008"]


def test_logs_that_are_not_there_yet_are_left_out(place: Place, local: Path, tmp_path: Path) -> None:
    upload(place, local, [tmp_path / "metrics.jsonl"], 8)
    assert place.objects() == {"step-00000008": FILES}


@contextmanager
def cut_off_after(requests: int, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server answers just so many requests, each of which takes a connection of its own."""
    unspoilt = Fault("cut", 2**40)
    with SpoilingProxy(int(server.rpartition(":")[2]), [unspoilt] * requests, always=Fault("cut")) as proxy:
        point_to(proxy.url, monkeypatch)
        yield
    point_to(server, monkeypatch)


def test_an_upload_is_cut_off_anywhere(
    remote: Place, server: str, local: Path, log: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = set()
    error = "not begun"
    for answered in range(2, 50, 4):
        with cut_off_after(answered, server, monkeypatch):
            try:
                upload(Place(remote.url), local, log, 8)
                error = ""
            except UserError as failure:
                error = str(failure)
        there = remote.objects().get("step-00000008", set())
        states.add(len(there))
        if "files.json" in there:
            assert there == objects_of(8)["step-00000008"]
            remote.bucket.remove(8)
        else:
            assert error.startswith(f"{remote.url}/step-00000008"), error
            assert "check the address, the network and the credentials" in error
            folder = tmp_path / str(answered)
            folder.mkdir()
            assert not remote.bucket.download(8, folder)
            remote.bucket.remove(8)
        if not error:
            break
    assert not error
    assert len(states) >= 4, "it was cut off here and there in the middle"


def test_a_run_goes_on_where_it_has_never_been(place: Place, local: Path, log: list[Path], tmp_path: Path) -> None:
    """With its metrics up to the checkpoint, and its events."""
    upload(place, local, log, 4, 8)
    process = Process(tmp_path / "elsewhere/run", place.bucket)
    run = process.run
    assert process.start.checkpoint == run.checkpoints / "step-00000008"
    assert process.start.passed_over == ()
    assert process.loaded is not None
    assert contents(process.loaded) == contents(checkpoint(8, process.config))
    assert read_tree(run.checkpoints) == {
        "step-00000008": None,
        **{f"step-00000008/{name}": data for name, data in read_tree(local / "step-00000008").items()},
    }
    assert run.metrics.read_bytes() == metrics(8)
    assert run.events.read_bytes().startswith(EVENTS)
    assert run.count_starts() == 2
    process.train_to(12)
    process.end()
    assert run.metrics.read_bytes() == metrics(13)


def test_what_is_damaged_there_is_passed_over(place: Place, local: Path, log: list[Path], tmp_path: Path) -> None:
    upload(place, local, log, 4, 8, 12)
    place.change("step-00000012/model.safetensors")
    place.delete("step-00000008/state.json")
    process = Process(tmp_path / "elsewhere", place.bucket)
    process.end()
    assert process.start.state["global_step"] == 4
    assert process.start.passed_over == (
        ("step-00000012", "model.safetensors has another SHA-256 than files.json says"),
        ("step-00000008", "state.json is missing"),
    )
    assert {path.name for path in process.run.checkpoints.iterdir()} == {"step-00000004"}


def test_all_damaged_there_is_refused(place: Place, local: Path, log: list[Path], tmp_path: Path) -> None:
    upload(place, local, log, 8)
    place.change("step-00000008/optimizer.safetensors")
    with pytest.raises(UserError, match=r"every checkpoint is damaged:\n  step-00000008: optimizer\.safetensors has"):
        Process(tmp_path / "elsewhere", place.bucket)
    assert place.objects() == objects_of(8)


def test_a_damaged_one_here_is_healed_from_there(place: Place, log: list[Path], tmp_path: Path) -> None:
    process = Process(tmp_path / "run")
    process.train_to(4)
    process.train_to(8)
    process.end()
    upload(place, process.run.checkpoints, [process.run.metrics], 4, 8)
    whole = read_tree(process.run.checkpoints / "step-00000008")
    os.truncate(process.run.checkpoints / "step-00000008/model.safetensors", 50)
    again = Process(tmp_path / "run", place.bucket)
    again.end()
    assert again.start.state["global_step"] == 8
    assert [name for name, _ in again.start.passed_over] == ["step-00000008"]
    assert read_tree(again.run.checkpoints / "step-00000008") == whole
    assert again.run.metrics.read_bytes() == metrics(8)


def test_one_that_is_damaged_there_is_replaced_when_the_run_comes_by_again(
    place: Place, local: Path, log: list[Path], tmp_path: Path
) -> None:
    """The new one is of the same step, but of another time."""
    upload(place, local, log, 8)
    place.change("step-00000008/model.safetensors")
    before = checkpoint(8, make_config(tmp_path / "run"))
    later = Checkpoint(before.weights, before.optimizer, {**before.state, "time": 2000.0})
    answers = iter([False, False, True])
    path = save_checkpoint(tmp_path / "again", 8, later)
    with pytest.raises(CancelledError):
        place.bucket.upload(path, log, answers.__next__)
    assert "files.json" not in place.objects()["step-00000008"], "half of the one and half of the other is none"
    place.bucket.upload(path, log, lambda: False)
    folder = tmp_path / "fetched"
    folder.mkdir()
    assert place.bucket.download(8, folder)
    verify(folder)
    assert json.loads((folder / "state.json").read_text())["time"] == 2000.0


def test_a_newer_one_here_is_taken_and_an_older_one_is_not(
    place: Place, local: Path, log: list[Path], tmp_path: Path
) -> None:
    upload(place, local, log, 8)
    process = Process(tmp_path / "run")
    process.train_to(4)
    process.end()
    process = Process(tmp_path / "run", place.bucket)
    assert process.start.state["global_step"] == 8
    assert process.run.metrics.read_bytes() == metrics(8)
    process.train_to(12)
    process.end()
    process = Process(tmp_path / "run", place.bucket)
    process.end()
    assert process.start.state["global_step"] == 12


def test_metrics_belong_to_the_checkpoint_they_came_with(place: Place, tmp_path: Path) -> None:
    """Here the run got further than it was saved, then went on elsewhere, where its figures came out otherwise."""

    def elsewhere(data: bytes) -> bytes:
        return data.replace(b'"loss": 0.', b'"loss": 0.000')

    process = Process(tmp_path / "run")
    process.train_to(4)
    for step in range(6, 20):
        process.run.add_metrics({"kind": "train", "global_step": step, "loss": 1 / step})
    process.end()
    state = {**checkpoint(8, process.config).state, "metrics_bytes": len(elsewhere(metrics(8)))}
    folder = save_checkpoint(tmp_path / "other", 8, Checkpoint({"w": torch.ones(1)}, {}, state))
    (tmp_path / "metrics.jsonl").write_bytes(elsewhere(metrics(9)))
    place.bucket.upload(folder, [tmp_path / "metrics.jsonl"], lambda: False)

    process = Process(tmp_path / "run", place.bucket)
    process.end()
    assert process.start.state["global_step"] == 8
    assert process.run.metrics.read_bytes() == elsewhere(metrics(8))


def test_an_event_line_that_was_copied_half_written_stays_alone(
    place: Place, local: Path, log: list[Path], tmp_path: Path
) -> None:
    log[1].write_bytes(EVENTS + b'{"event": "sa')
    upload(place, local, log, 8)
    process = Process(tmp_path / "elsewhere", place.bucket)
    process.end()
    begun, torn, resumed = process.run.events.read_bytes().splitlines(keepends=True)
    assert (begun, torn) == (EVENTS, b'{"event": "sa\n')
    assert json.loads(resumed)["event"] == "resume"


def test_the_last_and_the_best_are_kept_and_what_is_later_goes(place: Place, tmp_path: Path, log: list[Path]) -> None:
    config = make_config(tmp_path / "run")
    for step in (4, 8, 12, 16, 20, 24):
        save_checkpoint(tmp_path / "local", step, checkpoint(step, config))
    upload(place, tmp_path / "local", log, 4, 8, 12, 16, 20, 24)
    place.delete("step-00000012/files.json")
    place.bucket.remove_old(20, keep_last=2, keep=lambda steps: {4})
    assert place.objects() == objects_of(4, 16, 20)
    place.bucket.remove_old(20, keep_last=1, keep=lambda steps: ())
    assert place.objects() == objects_of(20)
    place.bucket.remove(20)
    place.bucket.remove(20)
    assert place.objects() == {}


def test_a_removal_that_is_cut_off_leaves_the_whole_or_nothing_that_counts(
    remote: Place, server: str, local: Path, log: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = set()
    for answered in range(5):
        upload(remote, local, log, 8)
        with cut_off_after(answered, server, monkeypatch), suppress(UserError):
            Place(remote.url).bucket.remove(8)
        there = remote.objects().get("step-00000008", set())
        assert "files.json" not in there or there == objects_of(8)["step-00000008"]
        states.add(len(there))
    assert len(states) >= 3, "it was cut off in the middle"


def test_a_saver_says_that_the_copy_failed_while_the_checkpoint_is_safe_here(
    remote: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saver() -> Saver:
        bucket = Bucket(open_storage(remote.url))
        return Saver(tmp_path / "run", keep_last=2, bucket=bucket, log=(), sync=lambda: None)

    def save(saver: Saver, step: int) -> tuple[Path | None, str]:
        checkpoint = Checkpoint({"w": torch.ones(3)}, {}, {"global_step": step})
        saver.save(step, checkpoint, at=0.0, keep=lambda steps: (), urgent=False)
        saver.wait()
        assert saver.wait_for_copies(60)
        (ended,) = saver.ended()
        ((copied, error),) = saver.copied()
        assert (copied, ended.error) == (step, "")
        return ended.path, error

    assert save(saver(), 4) == (tmp_path / "run/step-00000004", "")
    address = os.environ["AWS_ENDPOINT_URL"]
    point_to("http://127.0.0.1:1", monkeypatch)
    path, error = save(saver(), 8)
    assert path == tmp_path / "run/step-00000008"
    assert error.startswith(f"{remote.url}/step-00000008: cannot be listed: ")
    point_to(address, monkeypatch)
    assert save(saver(), 12)[1] == ""
    assert set(remote.objects()) == {"step-00000004", "step-00000012"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"step-00000008", "step-00000012"}


def test_a_place_that_cannot_be_reached_is_one_clear_error(
    remote: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(UserError, match=rf"{remote.url}: cannot be listed: .*check the address, the network and the"):
        Process(tmp_path / "run", Bucket(open_storage(remote.url)))
