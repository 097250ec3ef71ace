"""A run folder that vanishes, is read-only, or on a disk that is full: said once, and nothing is lost."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.checkpoint import verify

from .conftest import ROOT, STEPS, TOTAL_STEPS, Run
from .lean import Lean, all_gone, curve, trainers, wait_until

TRACEBACK_OF_OURS = f'File "{ROOT / "dtrain"}'
TRACEBACK_OF_A_THREAD = "Exception in thread"
NOT_SAVED = "WARNING: no checkpoint of step "


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"can't mount a disk to fill: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_gone_then_nearly_full_then_full(disk: Path, run: Run, undisturbed: Run) -> None:
    run = Lean(disk / "run", run.shards, undisturbed, logs=run.folder.parent)

    vanished = run.launch()
    run.wait_for_step(vanished, 9)
    away = run.folder.rename(disk / "away")
    assert vanished.finish() != 0
    messages = [line for line in vanished.output.splitlines() if "dtrain: " in line]
    assert len(messages) == 1, vanished.output
    assert f"{run.folder}/" in messages[0]
    assert "the run folder has to stay where it is" in messages[0]
    assert TRACEBACK_OF_OURS not in vanished.output
    assert TRACEBACK_OF_A_THREAD not in vanished.output
    assert not run.folder.exists()
    away.rename(run.folder)

    no_room_for_a_checkpoint = run.launch()
    run.wait_for_step(no_room_for_a_checkpoint, STEPS + 3)
    processes = trainers(no_room_for_a_checkpoint)
    ballast = fill(disk, leave=200_000)
    wait_until(lambda: NOT_SAVED in no_room_for_a_checkpoint.output, no_room_for_a_checkpoint)
    whole = newest(run)
    no_room_for_a_checkpoint.process.send_signal(signal.SIGTERM)
    assert all_gone(processes)
    no_room_for_a_checkpoint.finish()
    status = run.status()
    assert status["state"] == "preempted"
    assert status["reason"].startswith("SIGTERM; ")
    assert "No space left on device" in status["reason"]
    assert whole == newest(run)
    assert f"step-{status['global_step']:08d}" > whole
    assert f"step-{status['global_step']:08d}: can't be written" in status["reason"]
    ballast.unlink()

    full = run.launch()
    wait_until(lambda: "resumes from" in full.output, full)
    assert run.events("resume")[-1]["checkpoint"] == whole
    run.wait_for_step(full, run.last_step() + 2)
    late = [f"{NOT_SAVED}{step}," for step in range(4 * STEPS, TOTAL_STEPS + 1)]
    wait_until(lambda: fill(disk, leave=0) and any(text in full.output for text in late), full)
    assert newest(run) < f"step-{4 * STEPS:08d}"
    ballast.unlink()
    full.succeed()
    assert TRACEBACK_OF_A_THREAD not in full.output
    assert "lines wait in memory" in full.output
    assert "is written again, without a gap" in full.output
    assert run.events("save_failed")
    assert run.checkpoints()[-1] == f"step-{TOTAL_STEPS:08d}"
    assert run.final() == undisturbed.final()
    for name in ("train/loss", "test/mask_iou"):
        assert curve(run, name) == curve(undisturbed, name)


def test_a_disk_that_cannot_be_written(disk: Path, run: Run, undisturbed: Run) -> None:
    shutil.copytree(undisturbed.folder, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    launched = Lean(disk / "run", run.shards, undisturbed, logs=run.folder.parent).launch_alone()
    assert launched.finish() == 1
    assert f"dtrain: {disk / 'run'}: the run folder can't be written: Read-only file system" in launched.output
    assert "Traceback" not in launched.output


def newest(run: Run) -> str:
    """The name of the newest checkpoint, which must be whole."""
    name = [name for name in run.checkpoints() if name.startswith("step-")][-1]
    verify(run.folder / "checkpoints" / name)
    return name


def fill(disk: Path, *, leave: int) -> Path:
    """Fill the disk but for so many bytes, or fill it up again; the file that does it."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        piece = bytes(4096)
        while shutil.disk_usage(disk).free > leave:
            try:
                file.write(piece)
            except OSError:
                break
    return ballast
