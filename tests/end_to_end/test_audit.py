"""`dtrain audit` on real trainings: taken away, resumed on other numbers of processes, and with forged evidence."""

import json
import signal
import subprocess

from .conftest import BIN, EPOCHS, TOTAL_STEPS, TRAIN_SAMPLES, Run


def audit(run: Run) -> "subprocess.CompletedProcess[str]":
    command = [str(BIN / "dtrain"), "audit", str(run.folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_run_that_lost_its_processes_twice_is_proved_and_a_forged_one_is_not(run: Run) -> None:
    first = run.launch(processes=2)
    run.wait_for_step(first, 12)
    first.kill()
    second = run.launch(processes=3)
    run.wait_for_step(second, 31)
    second.process.send_signal(signal.SIGTERM)
    second.finish()
    run.launch(processes=1).succeed()

    proved = audit(run)
    assert proved.returncode == 0, proved.stderr
    assert "3, with 2, 3, 1 process(es)" in proved.stdout
    assert f"{TOTAL_STEPS} of {TOTAL_STEPS} steps, {TRAIN_SAMPLES * EPOCHS} samples" in proved.stdout
    assert f"{EPOCHS} of {EPOCHS} epochs whole" in proved.stdout

    evidence = run.folder / "audit" / "rank-0.jsonl"
    lines = evidence.read_text().splitlines()
    last = json.loads(lines[-1])
    last["keys"][0], taken = last["keys"][1], last["keys"][0]
    evidence.write_text("\n".join([*lines[:-1], json.dumps(last), ""]))
    forged = audit(run)
    assert forged.returncode == 1
    assert f"{evidence}:{len(lines)}" in forged.stderr
    assert taken in forged.stderr
    assert "Traceback" not in forged.stderr
