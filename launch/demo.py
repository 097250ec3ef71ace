"""`make demo`: the whole path on sample data, with the commands a user would type; nothing is done twice.

Makes data, packs it, trains, takes the nodes away in the middle of an epoch, trains on with the same command,
evaluates, reports. Imports neither the packer nor the trainer: it runs their commands.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

DEMO = Path("demo")
ROOMS, SHARDS, RUN, LOG = DEMO / "rooms", DEMO / "shards", DEMO / "run", DEMO / "train.log"
CONFIG = "configs/demo.yaml"
BIN = Path(sys.executable).parent

PREEMPT_AT = 0.85
"""The share of the run at which it is preempted: in the middle of an epoch of the second stage."""

TIMEOUT_SECONDS = 1800.0


def main() -> int:
    """Run the demo; the exit status is that of the first command that fails."""
    began = time.monotonic()
    try:
        _run("shard-tools", "sample", str(ROOMS), "--backgrounds", "160", "--foregrounds", "3", "--size", "128")
        _run("shard-tools", "build", str(ROOMS), str(SHARDS))
        train = _train_command()
        if not _events("preempted"):
            _launch(train, preempt=True)
        if _status() != "done":
            _launch(train, preempt=False)
        evaluation = RUN / "evaluation.json"
        if not evaluation.exists() or evaluation.stat().st_mtime < (RUN / "status.json").stat().st_mtime:
            _run("dtrain", "evaluate", str(RUN))
        else:
            _say(f"evaluated before: {evaluation}")
        _run("dtrain", "report", str(RUN))
    except subprocess.CalledProcessError as error:
        print(f"demo: this command failed with exit status {error.returncode}: {shlex.join(error.cmd)}")
        return int(error.returncode) or 1
    _print_ending(time.monotonic() - began)
    return 0


def _train_command() -> list[str]:
    """The launch line: one process for each GPU, or two that share the cores."""
    import torch

    gpus = torch.cuda.device_count()
    processes = gpus or 2
    threads = 1 if gpus else max((os.cpu_count() or 2) // processes, 1)
    return [
        *("accelerate", "launch", "--config_file", "accelerate_config.yaml", "--num_processes", str(processes)),
        *("--num_cpu_threads_per_process", str(threads), "-m", "dtrain", "train", CONFIG),
    ]


def _launch(command: list[str], *, preempt: bool) -> None:
    """Run the launcher, showing what the trainer says; with `preempt`, end it with SIGTERM in mid-epoch."""
    _announce(command)
    with LOG.open("a") as log:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        if preempt:
            threading.Thread(target=_preempt_in_mid_epoch, args=(process,), daemon=True).start()
        in_traceback = False
        for line in process.stdout:
            log.write(line)
            # The launcher answers SIGTERM with a traceback of its own; it stays in the log.
            in_traceback = line.startswith("Traceback") or (in_traceback and not line.startswith(RUN.name))
            if not in_traceback and not line.startswith(("W1", "W0", "E1", "E0", "torch.distributed.elastic")):
                print("  " + line, end="", flush=True)
        process.wait()
    state = _status()
    if state == "preempted":
        _say("the launcher ended with an error, as it does; what counts is demo/run/status.json: preempted")
    elif state != "done":
        print(f"  see {LOG}")
        raise subprocess.CalledProcessError(process.returncode or 1, command)


def _preempt_in_mid_epoch(launcher: subprocess.Popen[str]) -> None:
    """Wait until enough samples are behind the run, then send what a node that is taken away sends."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while launcher.poll() is None and time.monotonic() < deadline:
        if _share_done() >= PREEMPT_AT:
            print("\n  >>> the node is taken away: SIGTERM to the launcher\n", flush=True)
            launcher.send_signal(signal.SIGTERM)
            return
        time.sleep(0.2)


def _share_done() -> float:
    """Samples of the last logged step over those of the whole run."""
    try:
        last = (RUN / "metrics.jsonl").read_text().splitlines()[-1]
        total = next(event["total_samples"] for event in _events("start"))
        return float(json.loads(last)["samples"] / total)
    except (OSError, IndexError, ValueError, StopIteration):
        return 0.0


def _events(kind: str) -> list[dict[str, Any]]:
    try:
        events = [json.loads(line) for line in (RUN / "events.jsonl").read_text().splitlines()]
    except OSError:
        return []
    return [event for event in events if event["event"] == kind]


def _status() -> str:
    try:
        return str(json.loads((RUN / "status.json").read_text())["state"])
    except OSError:
        return ""


def _run(*command: str) -> None:
    _announce(list(command))
    subprocess.run([str(BIN / command[0]), *command[1:]], check=True)


def _announce(command: list[str]) -> None:
    print(f"\n$ {shlex.join(command)}", flush=True)


def _say(message: str) -> None:
    print(f"  {message}", flush=True)


def _print_ending(seconds: float) -> None:
    result = json.loads((RUN / "evaluation.json").read_text())
    ours, trivial = result["metrics"], result["trivial"]
    resumed = _events("resume")
    print(f"\nOn {result['samples']:,} tuples of rooms that were never trained on:\n")
    print(f"  {'':24}{'this model':>12}{'trivial':>12}   trivial predictor")
    print(f"  {'mask IoU':24}{ours['mask_iou']:12.3f}{trivial['all background']['mask_iou']:12.3f}   all background")
    print(f"  {'depth MSE':24}{ours['depth_mse']:12.5f}{trivial['mean depth']['depth_mse']:12.5f}   the mean depth")
    if resumed:
        last = resumed[-1]
        print(f"\npreempted and resumed from {last['checkpoint']}: {last['repeated_steps']} steps had to be repeated")
    print(f"picture: {RUN / 'evaluation.png'}\nreport:  {RUN / 'report.html'}\ntook {seconds:.0f} s")


if __name__ == "__main__":
    raise SystemExit(main())
