"""Why a run was refused at its start is in its status, if that is this process's to write."""

import subprocess
import sys
from pathlib import Path

import pytest

from dtrain import run_folder
from dtrain.claim import ClaimedRun
from dtrain.run_folder import RunFolder, State
from shard_tools.errors import UserError

HOLDER = """
import sys
from pathlib import Path
from dtrain.run_folder import RunFolder
RunFolder(Path(sys.argv[1])).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def begun(path: Path, state: State) -> RunFolder:
    """A run that stands at step 7."""
    run = RunFolder(path / "run")
    run.path.mkdir()
    (run.path / ".lock").touch()
    run.write_status(state, "SIGTERM", 7)
    return run


def refuse(run: RunFolder, error: Exception, *, claim: bool = True) -> dict[str, object]:
    """What the status is after a start that ended with this error."""
    claimed = ClaimedRun(run.path)
    with pytest.raises(type(error)), claimed.refusals():
        if claim:
            claimed.claim()
            claimed.lock()
        raise error
    status = run.read_status()
    status.pop("updated", None)
    return status


@pytest.mark.parametrize("state", ["running", "preempted", "failed"])
def test_a_run_that_cannot_go_on_says_why(tmp_path: Path, state: State) -> None:
    status = refuse(begun(tmp_path, state), UserError("data.manifest: no such file"))
    assert status == {"state": "failed", "reason": "data.manifest: no such file", "global_step": 7}


def test_an_error_that_is_nobodys_mistake_is_named_too(tmp_path: Path) -> None:
    assert refuse(begun(tmp_path, "running"), MemoryError("too little"))["reason"] == "MemoryError: too little"


def test_one_that_is_done_stays_done(tmp_path: Path) -> None:
    assert refuse(begun(tmp_path, "done"), UserError("no"))["state"] == "done"


def test_a_lost_process_is_no_refusal(tmp_path: Path) -> None:
    lost = RuntimeError("[/build/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert refuse(begun(tmp_path, "preempted"), lost)["state"] == "preempted"


def test_who_has_not_locked_it_writes_nothing(tmp_path: Path) -> None:
    assert refuse(begun(tmp_path, "running"), UserError("no"), claim=False)["state"] == "running"


def test_the_status_of_another_training_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_WAIT_SECONDS", 0.3)
    run = begun(tmp_path, "running")
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        claimed = ClaimedRun(run.path)
        with pytest.raises(UserError, match="another training runs"), claimed.refusals():
            claimed.claim()
        assert run.read_status()["state"] == "running"
        holder.communicate("")


def test_a_run_that_was_never_begun_leaves_no_trace(tmp_path: Path) -> None:
    run = ClaimedRun(tmp_path / "run")
    with pytest.raises(UserError), run.refusals():
        run.claim()
        raise UserError("data.manifest: no such file")
    assert not run.path.exists()
