"""Processes that hang, or are gone: the others leave with a message, and the same command goes on where the run was."""

import signal

import psutil
import pytest

from .conftest import ROOT, STEPS, Launched, Run
from .lean import GRACE_SECONDS, Lean, all_gone, trainers, wait_until

TRACEBACK_OF_OURS = f'File "{ROOT / "dtrain"}'


def test_hung_then_lost_then_lost_and_restarted_by_the_launcher(run: Run, undisturbed: Run) -> None:
    run = Lean(run.folder, run.shards, undisturbed)

    hangs = run.launch("--hang.step_seconds", "4", "--data.patience_seconds", "1")
    run.wait_for_step(hangs, STEPS + 2)
    first, second = trainers(hangs)
    second.suspend()
    assert not psutil.wait_procs([first], timeout=2 * GRACE_SECONDS)[1], hangs.output
    second.kill()
    assert hangs.finish() != 0
    stuck = run.last_step() + 1
    (message,) = [line for line in hangs.output.splitlines() if line.startswith("process ")]
    assert message.startswith("process 0: no progress for ")
    assert f" s in step {stuck} (computing); process 1 does not answer; ends here; the same command" in message
    assert TRACEBACK_OF_OURS not in hangs.output
    status = run.status()
    assert status["state"] == "running", "nothing is wrong with the run; the same command goes on with it"
    assert status["reason"] in message
    assert [event["reason"] for event in run.events("failed")] == [status["reason"]]

    loses = run.launch()
    run.wait_for_step(loses, run.last_step() + 2)
    first, second = trainers(loses)
    second.send_signal(signal.SIGKILL)
    assert all_gone([first])
    assert loses.finish() != 0
    assert loses.output.count("lost another process") == 1
    assert TRACEBACK_OF_OURS not in loses.output
    assert run.status()["state"] == "running"
    assert "lost another process" in run.status()["reason"]

    restarts = run.launch(max_restarts=1)
    run.wait_for_step(restarts, run.last_step() + 2)
    first, second = trainers(restarts)
    first.send_signal(signal.SIGKILL)
    assert all_gone([second])
    assert restarts.finish() == 0, restarts.output
    assert run.status()["state"] == "done"
    resumes = run.events("resume")
    assert len(resumes) == 3
    assert resumes[0]["global_step"] <= resumes[1]["global_step"] <= resumes[2]["global_step"]
    assert run.final() == undisturbed.final()


def test_told_to_stop_while_another_never_comes_and_while_another_hangs(run: Run, undisturbed: Run) -> None:
    """In an exchange no handler of a signal can run; the process leaves all the same, before a launcher kills it."""
    run = Lean(run.folder, run.shards, undisturbed, ("--hang.leave_seconds", "2"))

    waits, other = run.launch_ranks((), ())
    other.kill()
    wait_until(lambda: is_listening(waits), waits)
    waits.process.send_signal(signal.SIGTERM)
    assert waits.process.wait(GRACE_SECONDS) == 1
    assert "process 0: SIGTERM in step 0 (starting); ends here" in waits.output
    assert not run.folder.exists(), "nothing was begun"

    stuck, hangs = run.launch_ranks((), ())
    run.wait_for_step(stuck, STEPS + 2)
    psutil.Process(hangs.process.pid).suspend()
    stuck.process.send_signal(signal.SIGTERM)
    assert stuck.process.wait(GRACE_SECONDS) == 1
    hangs.kill()
    (message,) = [line for line in stuck.output.splitlines() if line.startswith("process 0: ")]
    assert message.startswith("process 0: told to stop by SIGTERM ")
    assert "process 1 does not answer" in message
    assert run.status()["state"] == "running"
    assert run.status()["reason"] in message


OUT_OF_MEMORY = """
import os, sys
import torch
from dtrain.cli import main

if os.environ["RANK"] == sys.argv.pop(1):
    norm = torch.nn.utils.get_total_norm
    calls = []

    def runs_out(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return norm(*arguments, **options)

    torch.nn.utils.get_total_norm = runs_out
sys.exit(main())
"""
"""A training on whose process of the first argument torch fails in the sixth step."""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_every_time_is_no_lost_one(run: Run, undisturbed: Run, rank: int) -> None:
    run = Lean(run.folder, run.shards, undisturbed)
    script = run.folder.with_name("out_of_memory.py")
    script.write_text(OUT_OF_MEMORY)
    begun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", str(script), str(rank)]
    launched = run._start(begun, ("--checkpoint.every", "3 steps"), {"PYTHONPATH": str(ROOT)})
    assert launched.finish() != 0
    message = f"process {rank}, step 6: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    status = run.status()
    assert (status["state"], status["reason"], status["global_step"]) == ("failed", message, 5)
    assert [event["reason"] for event in run.events("failed")] == [message]
    assert launched.output.count("OutOfMemoryError: CUDA out of memory") == 1, launched.output
    assert "lost another process" not in launched.output


def is_listening(launched: Launched) -> bool:
    """Whether process 0 can be found by the others, for which it waits."""
    return any(it.status == psutil.CONN_LISTEN for it in psutil.Process(launched.process.pid).net_connections())
