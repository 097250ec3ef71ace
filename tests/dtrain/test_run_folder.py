"""The run folder: its lock, its status, its lines of metrics."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dtrain import run_folder
from dtrain.config import Config
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError

HOLDER = """
import sys, time
from pathlib import Path
from dtrain.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("locked", flush=True)
time.sleep(100)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "run"
    path.mkdir()
    return RunFolder(path)


def test_a_second_process_waits_and_is_refused_until_the_first_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE_SECONDS", 0.1)
    path = tmp_path / "new" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"{path}: another training runs in .*process {holder.pid} on .*--run"):
            RunFolder(path).lock()
        assert 0.3 <= time.monotonic() - began < 10
        waits = f"{path}: another training still holds this folder (process {holder.pid} on "
        assert capfd.readouterr().err.count(waits) == 1

        monkeypatch.undo()
        began = time.monotonic()
        threading.Timer(0.5, holder.kill).start()
        RunFolder(path).lock()
        assert 0.5 <= time.monotonic() - began < 10
        assert holder.wait() == -signal.SIGKILL


def test_a_lock_whose_process_is_gone_does_not_matter(folder: RunFolder) -> None:
    lock = folder.path / ".lock"
    lock.write_text("process 1 on another-machine\n")
    folder.lock()
    assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: the run folder can't be written: Not a directory"):
        RunFolder(tmp_path / "file/run").lock()


@pytest.mark.parametrize("name", ["checkpoints/model.pt", "config.yaml", "audit/x", "metrics.jsonl"])
def test_a_folder_with_somebody_elses_files_is_refused(folder: RunFolder, name: str) -> None:
    file = folder.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("precious")
    with pytest.raises(
        UserError, match=rf"{folder.path}: holds {file.relative_to(folder.path).parts[0]}, but no \.lock"
    ):
        folder.lock()
    assert [path for path in folder.path.rglob("*") if path.is_file()] == [file]


def test_other_files_may_lie_in_the_folder_and_stay(folder: RunFolder) -> None:
    (folder.path / "slurm.out").write_text("x")
    folder.lock()
    folder.write_status("running", "", 0)
    folder.add_metrics({"loss": 1})
    folder.add_event("start", 0)
    for path in (folder.checkpoints / "step-00000001", folder.panels, folder.audit, folder.tensorboard):
        path.mkdir(parents=True)
    folder.clear()
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "slurm.out"]


def test_status_is_what_was_written_last(folder: RunFolder) -> None:
    assert folder.read_status() == {}
    folder.write_status("running", "", 3)
    folder.write_status("preempted", "SIGTERM", 5)
    status = folder.read_status()
    assert (status["state"], status["reason"], status["global_step"]) == ("preempted", "SIGTERM", 5)
    assert status["updated"].endswith("+00:00")


@pytest.mark.parametrize("text", ["", "{", "\0\0", "[]", "5"])
def test_a_status_that_is_none_is_named(folder: RunFolder, text: str) -> None:
    folder.status.write_text(text)
    with pytest.raises(UserError, match=rf"{folder.status}: .*remove it"):
        folder.read_status()


def test_the_configuration_of_a_run_and_of_none(folder: RunFolder, make_config: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=rf"{folder.path}: not a run folder"):
        folder.load_config()
    config = make_config()
    folder.config.write_text(config.to_yaml())
    assert folder.load_config() == config
    assert folder.require() is folder


def test_metrics_after_a_checkpoint_are_forgotten(folder: RunFolder) -> None:
    folder.add_metrics({"global_step": 1})
    size = folder.metrics_lines.end()
    before = folder.metrics.read_bytes()
    assert size == len(before)
    folder.add_metrics({"global_step": 2})
    with folder.metrics.open("a") as file:
        file.write('{"global_st')  # cut off by a kill

    folder.truncate_metrics(size)

    assert folder.metrics.read_bytes() == before
    folder.add_metrics({"global_step": 2})
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == [
        {"global_step": 1},
        {"global_step": 2},
    ]


def test_metrics_that_are_shorter_than_at_the_checkpoint_are_refused(folder: RunFolder) -> None:
    folder.add_metrics({"global_step": 1})
    size = folder.metrics_lines.end()
    folder.metrics.write_text("{}\n")
    with pytest.raises(UserError, match=rf"{folder.metrics}: 3 bytes, .* {size}; .*--fresh"):
        folder.truncate_metrics(size)
    assert folder.metrics.read_text() == "{}\n"


def test_metrics_of_a_run_without_any(folder: RunFolder) -> None:
    assert folder.metrics_lines.end() == 0
    folder.truncate_metrics(0)
    assert folder.metrics.read_bytes() == b""


def test_events_carry_time_and_step(folder: RunFolder) -> None:
    began = time.time()
    folder.add_event("resume", 12, checkpoint="step-00000012")
    (event,) = map(json.loads, folder.events.read_text().splitlines())
    assert began <= event.pop("time") <= time.time()
    assert event.pop("uptime") > 0
    assert event == {"event": "resume", "global_step": 12, "checkpoint": "step-00000012"}
