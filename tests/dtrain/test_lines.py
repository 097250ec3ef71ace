"""Lines are in the file, whole and in order, whatever the disk does; or they wait, or it is said that they can't."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dtrain import lines as lines_module
from dtrain.lines import Lines
from shard_tools.errors import UserError

from .conftest import fill
from .crash_disk import Disk, Recorder

FULL = "No space left on device: lines wait in memory until there is room"


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "log.jsonl")
    assert lines.end() == 0
    assert not lines.path.exists()
    for number in range(3):
        lines.add({"n": number, "text": "ä\n"})
        assert numbers(lines.path) == list(range(number + 1))
        assert lines.end() == lines.path.stat().st_size
    lines.sync()
    Lines(lines.path).add({"n": 3})
    assert numbers(lines.path) == [0, 1, 2, 3]


def test_synced_lines_survive_a_power_cut(tmp_path: Path) -> None:
    """With the name of their file."""
    with Recorder(tmp_path) as recorder:
        lines = Lines(tmp_path / "log.jsonl")
        lines.add({"n": 1})
        lines.sync()
        lines.add({"n": 2})
    disk = Disk()
    for operation in recorder.log:
        disk.apply(operation)
    assert disk.tree() == {"log.jsonl": b'{"n": 1}\n{"n": 2}\n'}
    assert disk.tree("lost", "lost") == {"log.jsonl": b'{"n": 1}\n'}


def test_a_full_disk_holds_up_lines_but_drops_and_tears_none(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines(small_disk / "log.jsonl")
    lines.add({"n": 0})
    ballast = fill(small_disk)
    for number in range(1, 500):
        lines.add({"n": number, "text": "x" * 100})
    written = lines.path.stat().st_size
    assert written < 500 * 100 < lines.end()
    with pytest.raises(OSError, match=f"No space left on device: '{lines.path}'"):
        lines.sync()
    assert (
        capsys.readouterr().err == f"{lines.path}: No space left on device: lines wait in memory until there is room\n"
    )
    ballast.unlink()
    assert lines.path.stat().st_size == written
    expected = lines.end()
    lines.sync()
    assert capsys.readouterr().err == f"{lines.path}: is written again, without a gap\n"
    assert lines.path.stat().st_size == expected == lines.end()
    lines.add({"n": 500})
    assert numbers(lines.path) == list(range(501))


def test_the_next_line_brings_those_that_waited_and_says_so(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines(small_disk / "log.jsonl")
    for episode in range(2):
        ballast = fill(small_disk)
        for number in range(3):
            lines.add({"n": 4 * episode + number, "text": "x" * 5000})
        ballast.unlink()
        lines.add({"n": 4 * episode + 3})
    assert numbers(lines.path) == list(range(8))
    said = (FULL, "is written again, without a gap") * 2
    assert capsys.readouterr().err == "".join(f"{lines.path}: {text}\n" for text in said)


def test_room_for_a_part_of_a_line(small_disk: Path) -> None:
    """What is in the file may end within a line as long as the rest of it waits."""
    lines = Lines(small_disk / "log.jsonl")
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - 4096)
    lines.add({"n": 1, "text": "x" * 6000})
    assert lines.path.stat().st_size == 4096
    ballast.unlink()
    lines.add({"n": 2})
    assert numbers(lines.path) == [1, 2]


def test_memory_for_what_waits_has_an_end(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_WAITING_BYTES", 10_000)
    lines = Lines(small_disk / "log.jsonl")
    fill(small_disk)
    with pytest.raises(UserError, match=rf"{lines.path}: can't be written: No space left .* on a disk with room"):
        for number in range(200):
            lines.add({"n": number, "text": "x" * 100})
    assert number > 50


LIMITED = """
import resource, sys
from pathlib import Path
from dtrain.lines import Lines

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

lines = Lines(Path(sys.argv[1]))
limit(985)
for number in range(100):
    lines.add({"n": number})
print(lines.path.stat().st_size, lines.end())
try:
    lines.sync()
except OSError as error:
    print(error.strerror)
limit(resource.RLIM_INFINITY)
lines.add({"n": 100})
"""


def test_a_limit_on_the_size_of_files_is_no_end_either(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == "985 990\nFile too large\n"
    assert "File too large: lines wait in memory" in done.stderr
    assert numbers(path) == list(range(101))


def test_a_line_that_a_kill_tore_gets_a_line_of_its_own(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "log.jsonl")
    lines.end_torn_line()
    assert not lines.path.exists()
    for torn, ended in (("", ""), ('{"n": 1}\n', '{"n": 1}\n'), ('{"n": 1}\n{"n"', '{"n": 1}\n{"n"\n'), ("\0", "\0\n")):
        lines.path.write_text(torn)
        lines.end_torn_line()
        assert lines.path.read_text() == ended
        lines.add({"n": 2})
        assert lines.path.read_text() == ended + '{"n": 2}\n'


def test_a_folder_that_has_vanished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = Lines(folder / "log.jsonl")
    lines.add({"n": 1})
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=rf"{lines.path}: can't be written: No such file or directory; .*same command"):
        lines.add({"n": 2})
    with pytest.raises(FileNotFoundError):
        lines.sync()
    assert not folder.exists()


def test_a_disk_that_turns_read_only(small_disk: Path) -> None:
    lines = Lines(small_disk / "log.jsonl")
    lines.add({"n": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=rf"{lines.path}: can't be written: Read-only file system; the run folder has"):
        lines.add({"n": 2})
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    lines.add({"n": 3})
    assert numbers(lines.path) == [1, 2, 3]


def test_threads_do_not_mix_their_lines(small_disk: Path) -> None:
    """Not even while the disk is full for a while."""
    lines = Lines(small_disk / "log.jsonl")
    ballast = fill(small_disk)

    def write(thread: int) -> None:
        for number in range(200):
            lines.add({"n": 1000 * thread + number, "text": "x" * 50})
            if (thread, number) == (0, 100):
                ballast.unlink()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    lines.sync()
    found = numbers(lines.path)
    assert len(found) == 800
    for first in range(0, 4000, 1000):
        assert [number for number in found if first <= number < first + 1000] == list(range(first, first + 200))
