"""What people see of long work: lines in a log, a bar on a terminal, a time left that holds."""

import contextlib
import io
import os
import pty
import termios
import time

import pytest

import shard_tools.progress
from shard_tools.progress import Progress


@pytest.fixture(autouse=True)
def _a_line_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_tools.progress, "LINE_INTERVAL_SECONDS", 0.0)


def test_a_log_gets_plain_lines_with_rate_and_time_left() -> None:
    log = io.StringIO()
    shown = Progress("packing", total=2000, unit="tuples", stream=log)
    time.sleep(0.2)
    shown.show({"MB/s": "35"})
    shown.advance(1000)
    shown.close()
    first, last = log.getvalue().splitlines()
    assert first.startswith("packing: 1,000/2,000 tuples (50%), ")
    assert first.endswith(" tuples/s, 00:00 left | MB/s=35")
    assert last.startswith("packing: 1,000/2,000")
    assert "\r" not in log.getvalue()


def test_time_left_is_that_of_the_work_left() -> None:
    log = io.StringIO()
    shown = Progress("run", total=20, unit="samples", total_work=10 * 1 + 10 * 600, initial_work=0, stream=log)
    time.sleep(0.1)
    shown.advance(10, work=10)
    line = log.getvalue().splitlines()[-1]
    assert "(50%)" in line
    minutes, seconds = line.split(" left")[0].split(", ")[-1].split(":")
    assert 55 <= 60 * int(minutes) + int(seconds) <= 90, "10 samples in 0.1 s; those to come take 600 times as long"


def test_a_resumed_run_counts_what_was_done_before_but_not_as_fast() -> None:
    log = io.StringIO()
    shown = Progress("run", total=100, unit="samples", initial=90, stream=log)
    time.sleep(0.2)
    shown.advance(5)
    line = log.getvalue().splitlines()[-1]
    assert line.startswith("run: 95/100 samples (95%), ")
    assert float(line.split("), ")[1].split(" ")[0]) < 26


def read_to_the_end(controller: int) -> str:
    """What a terminal that is closed was sent; it hands that out in pieces, and ends with an error."""
    parts = []
    with contextlib.suppress(OSError):
        while part := os.read(controller, 100_000):
            parts.append(part)
    os.close(controller)
    return b"".join(parts).decode()


def test_a_terminal_gets_a_live_bar_and_whole_notes() -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with os.fdopen(terminal, "w") as stream:
        shown = Progress("run", total=4, unit="samples", stream=stream)
        shown.advance(1)
        shown.note("a note")
        shown.advance(3)
        shown.close()
    text = read_to_the_end(controller)
    assert "\r" in text
    assert "a note\r\n" in text
    assert "4/4" in text
