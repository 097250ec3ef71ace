"""Which launch a process belongs to: what is asked of one is done once, however often it starts its processes again."""

import os

from dtrain.uptime import started_at


def launch_id() -> str:
    """The Slurm job, or else the launcher's process, which outlives the processes that it starts again."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        return f"Slurm job {job}"
    parent = os.getppid()
    return f"process {parent} on {os.uname().nodename}, started {started_at(parent)} s after the machine"


def was_restarted() -> bool:
    """Whether the command is not a new one: the same one is run again, by the launcher or by Slurm."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
