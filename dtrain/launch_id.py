"""Which launch a process belongs to: what is asked of one is done once, however often it starts its processes again."""

import os

from dtrain.uptime import started_at


def launch_id() -> str:
    """The Slurm job, torchrun's own name for it, or the launcher's process, which outlives those that it starts again.

    Of several machines without such a name any may come to have process 0, so all their launches are taken for one:
    a run that was begun anew must not be begun anew again.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        return f"Slurm job {job}"
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name != "none":
        return f"torchrun {name}"
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return "several machines"
    parent = os.getppid()
    return f"process {parent} on {os.uname().nodename}, started {started_at(parent)} s after the machine"


def was_restarted() -> bool:
    """Whether the command is not a new one: the same one is run again, by the launcher or by Slurm."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
