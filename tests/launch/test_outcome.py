"""What an attempt at a run came to, as an exit status: with stand-ins for a training, and with a real one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.tiny import make_shards, write_config
from launch.outcome import AGAIN, DONE, FAILED, INTERRUPTED, NO_PROGRESS

from .metadata_server import wait_until

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 120

STAND_IN = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[sys.argv.index("--run") + 1])
does = json.loads(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: None)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
if "began" in does:
    with open(run / "events.jsonl", "a") as events:
        events.write(json.dumps({"event": "resume", "global_step": does["began"]}) + "\\n")
        events.write(json.dumps({"event": "other", "global_step": 99}) + "\\n")
if "saved" in does:
    (run / f"checkpoints/step-{does['saved']:08d}").mkdir()
if "state" in does:
    (run / "status.new").write_text(json.dumps({"state": does["state"], "reason": does.get("reason", "")}))
    (run / "status.new").rename(run / "status.json")
if "wait" in does:
    (run / "waits").touch()
    signal.pause() if does["wait"] == "signal" else time.sleep(does["wait"])
os._exit(does.get("status", 1))
"""
"""Does to a run folder what a training does."""


class Attempts:
    """One attempt after the other at a run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.begun: list[subprocess.Popen[str]] = []
        self._script = folder / "stand_in.py"
        self._script.write_text(STAND_IN)

    def begin(self, **does: object) -> "subprocess.Popen[str]":
        """Start one whose training `does` that, under this very program."""
        self.begun.append(begin("--", sys.executable, self._script, json.dumps(does), "--run", self.run))
        return self.begun[-1]

    def __call__(self, **does: object) -> tuple[int, str]:
        """The exit status of one, and what it said."""
        return end(self.begin(**does))


def begin(*words: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "launch.outcome", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, said


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    made = Attempts(tmp_path)
    yield made
    for process in made.begun:
        process.kill()
        process.communicate()


def test_a_run_that_is_done(attempts: Attempts) -> None:
    status, said = attempts(began=0, saved=7, state="done", status=1)
    assert (status, said) == (DONE, f"launch.outcome: {attempts.run}: done: exit status 0\n")
    assert attempts(status=0)[0] == DONE, "there was nothing left to do"
    status, said = attempts(status=1)
    assert status == FAILED, "a run that is done refused to go on"
    assert "could not begin" in said


def test_a_run_that_is_to_go_on(attempts: Attempts) -> None:
    status, said = attempts(began=0, state="preempted", reason="SIGTERM", status=1)
    assert status == AGAIN == 75
    assert "preempted by SIGTERM" in said
    for state in ("running", "failed"):
        shutil.rmtree(attempts.run / "checkpoints")
        assert attempts(began=3, saved=7, state=state)[0] == AGAIN, "it got on"
        status, said = attempts(began=7, state=state, reason="out of luck")
        assert status == (NO_PROGRESS if state == "running" else FAILED)
        assert "no new checkpoint: out of luck" in said


def test_a_checkpoint_that_was_fetched_is_no_progress(attempts: Attempts) -> None:
    """The folder is empty on a new machine, and the newest checkpoint comes from a bucket."""
    assert attempts(began=7, saved=7, state="running")[0] == NO_PROGRESS


def test_an_attempt_that_did_not_begin(attempts: Attempts) -> None:
    status, said = attempts(status=1)
    assert (status, "could not begin" in said) == (FAILED, True)
    assert attempts(began=0, state="running", status=1)[0] == NO_PROGRESS
    status, said = attempts(status=1)
    assert status == NO_PROGRESS, "the others did not come, say"
    assert "before the training went on" in said


def test_events_that_a_kill_cut_off(attempts: Attempts) -> None:
    attempts(began=7, saved=7, state="running")
    with (attempts.run / "events.jsonl").open("a") as events:
        events.write('{"event": "resume", "global_st')
    (attempts.run / "checkpoints" / "step-00000009.new").mkdir()
    assert attempts(began=7, state="running")[0] == NO_PROGRESS
    assert attempts(began=7, saved=8, state="running")[0] == AGAIN


def test_a_start_that_is_refused_after_a_good_one(attempts: Attempts) -> None:
    assert attempts(began=0, saved=7, state="running")[0] == AGAIN
    status, said = attempts(state="failed", reason="was begun with another configuration")
    assert (status, "failed with no new checkpoint: was begun with another" in said) == (FAILED, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_told_to_stop(attempts: Attempts, number: signal.Signals) -> None:
    attempt = attempts.begin(began=0, state="running", wait="signal")
    wait_until((attempts.run / "waits").exists, "it does not start")
    attempt.send_signal(number)
    status, said = end(attempt)
    assert status == AGAIN, "that nothing was saved is not the training's fault"
    assert f"{number.name}: SIGTERM sent to the launcher" in said


def test_stopped_by_a_person(attempts: Attempts) -> None:
    """Who would have to stop it again, if it were started again."""
    attempt = attempts.begin(began=0, state="preempted", wait=60)
    wait_until((attempts.run / "waits").exists, "it does not start")
    attempt.send_signal(signal.SIGINT)
    assert end(attempt)[0] == INTERRUPTED == 130


def test_as_the_first_process_of_a_container(attempts: Attempts, tmp_path: Path) -> None:
    """The kernel hands such a process no signal that it neither handles nor blocks."""
    if os.geteuid() != 0:
        pytest.skip("only root can make process namespaces")
    does = json.dumps({"began": 0, "state": "preempted", "wait": "signal"})
    container = subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
            *(sys.executable, "-m", "launch.outcome", "--", sys.executable, str(tmp_path / "stand_in.py"), does),
            *("--run", str(attempts.run)),
        ],
        cwd=ROOT,
    )
    wait_until((attempts.run / "waits").exists, "it does not start")
    (first,) = psutil.Process(container.pid).children()
    first.send_signal(signal.SIGTERM)
    assert container.wait(LIMIT_SECONDS) == AGAIN


def test_a_launcher_that_waits_for_lost_machines_is_ended(attempts: Attempts, tmp_path: Path) -> None:
    code = "import launch.outcome as o; o.LINGER_SECONDS = 1.0; raise SystemExit(o.main())"
    attempts(began=0, state="preempted")
    does = json.dumps({"began": 0, "wait": 4})
    command = (sys.executable, str(tmp_path / "stand_in.py"), does, "--run", str(attempts.run))
    began = time.monotonic()
    old = subprocess.run([sys.executable, "-c", code, "--", *command], cwd=ROOT, check=False, timeout=LIMIT_SECONDS)
    assert old.returncode == NO_PROGRESS
    assert time.monotonic() - began > 4, "what the last attempt wrote is no reason"
    does = json.dumps({"began": 0, "state": "preempted", "wait": 60})
    command = (sys.executable, str(tmp_path / "stand_in.py"), does, "--run", str(attempts.run))
    began = time.monotonic()
    new = subprocess.run(
        [sys.executable, "-c", code, "--", *command],
        cwd=ROOT,
        check=False,
        timeout=LIMIT_SECONDS,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert new.returncode == AGAIN
    assert time.monotonic() - began < 30
    assert "the launcher still waits for other machines" in new.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected a launcher after --, as in: python -m launch.outcome -- LAUNCHER"),
        (["accelerate", "launch", "--run", "r"], "expected a launcher after --"),
        (["--", "accelerate", "launch"], "expected one --run RUN in the command, not 0"),
        (["--", "x", "--run", "a", "--run=b"], "expected one --run RUN in the command, not 2"),
        (["--", "x", "--run", "a", "--fresh"], "--fresh would throw work away at every start"),
        (["--", "x", "--run", "a", "--from-stage=2"], "--from-stage=2 would throw work away at every start"),
    ],
)
def test_mistakes(words: list[str], expected: str) -> None:
    status, said = end(begin(*words))
    assert status == 2
    assert said.startswith(f"launch.outcome: {expected}")
    assert said.count("\n") == 1


def test_a_launcher_that_is_not_there(tmp_path: Path) -> None:
    assert end(begin("--", tmp_path / "none", "--run", tmp_path)) == (
        127,
        f"launch.outcome: {tmp_path}/none can't be started: No such file or directory\n",
    )


def test_a_real_training(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data")
    config = write_config(tmp_path / "config.yaml", run=tmp_path / "other", shards=shards, second_epochs=1)
    run = tmp_path / "run"
    command = ("--", sys.executable, "-m", "dtrain", "train", config, "--run", run)
    status, said = end(begin(*command, "--optimizer.clip_norm", "-1"))
    assert (status, "could not begin" in said) == (FAILED, True)

    attempt = begin(*command)
    wait_until((run / "metrics.jsonl").exists, "it does not start")
    attempt.send_signal(signal.SIGTERM)
    status, said = end(attempt)
    assert (status, "told to stop" in said) == (AGAIN, True), said
    assert json.loads((run / "status.json").read_text())["state"] == "preempted"

    status, said = end(begin(*command, "--optimizer.clip_norm", "2"))
    assert (status, "failed with no new checkpoint" in said) == (FAILED, True), said
    assert end(begin(*command))[0] == DONE
