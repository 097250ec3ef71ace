"""What counts as a difference: a launch that goes wrong by itself, or a run that does not end like the undisturbed."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.chaos_run import Launch
from bench.training import LAUNCH_TIMEOUT, ROOT, Training

LOST_DECODER = "a decoding process was ended by"


def problems_of_launch(launch: Launch) -> list[str]:
    """What should not have been, whoever was hit by whatever."""
    problems = [f"left behind after {launch.seconds:.0f} s: {process}" for process in launch.left_behind]
    if any(f'File "{ROOT / package}/' in launch.output for package in ("dtrain", "shard_tools")):
        problems.append(f"a traceback of ours: {launch.log}")
    state, reason = launch.status.get("state"), launch.status.get("reason", "")
    if state == "failed" and not (launch.victim in ("decoder", "all") and LOST_DECODER in reason):
        problems.append(f"failed: {reason}")
    if not launch.struck and not (state == "done" and launch.exit_status == 0) and not launch.left_behind:
        problems.append(f"ended by itself with exit status {launch.exit_status}, {state or 'no status'}: {launch.log}")
    if launch.state_before == "preempted" and launch.repeated_steps:
        problems.append(f"{launch.repeated_steps} steps are done again, although the run was preempted and saved")
    return problems


def problems_of_run(run: Training, undisturbed: Training, *, same_processes: bool) -> list[str]:
    """Where a run that is done differs from the one that was let alone.

    On as many processes to the byte; else the same samples in the same steps, and figures for each of them.
    """
    problems = _audit(run)
    last, expected = run.checkpoints()[-1:], undisturbed.checkpoints()[-1:]
    if last != expected:
        return [*problems, f"the last checkpoint is {last} instead of {expected}"]
    try:
        if same_processes:
            problems += _unequal("file", run.final(), undisturbed.final())
        problems += _unequal("log", _steps(run), _steps(undisturbed))
        curves = [_curves(each.folder, values=same_processes) for each in (run, undisturbed)]
        problems += _unequal("TensorBoard", *curves)
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"what the run ended with can't be read: {error!r}")
    return problems


def _audit(run: Training) -> list[str]:
    audit = subprocess.run(
        [sys.executable, "-m", "dtrain", "audit", str(run.folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LAUNCH_TIMEOUT,
    )
    proved = audit.returncode == 0 and "the order held, and no sample came twice in an epoch" in audit.stdout
    return [] if proved else [f"audit: {audit.stdout}{audit.stderr}"]


def _unequal(what: str, found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    names = sorted(found.keys() | expected.keys())
    return [f"{what}: {name} differs" for name in names if found.get(name) != expected.get(name)]


def _steps(run: Training) -> dict[str, list[int]]:
    """The steps that were logged, by kind."""
    steps: dict[str, list[int]] = {}
    for line in run.lines("metrics.jsonl"):
        steps.setdefault(f"steps of kind {line['kind']}", []).append(line["global_step"])
    return steps


def _curves(folder: Path, *, values: bool) -> dict[str, list[tuple[Any, ...]]]:
    """The curves as TensorBoard shows them, with or without their values."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each resume
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) if values else (event.step,) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
