"""Processes of one launch know it for the same, whatever started them again; another launch is another."""

import os
import subprocess
import sys

import pytest

VARIABLES = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE")
PRINT = "from dtrain.launch_id import launch_id; print(launch_id())"
LAUNCH_TWO = f"import subprocess, sys; [subprocess.run([sys.executable, '-c', {PRINT!r}]) for _ in range(2)]"


def ids_of_a_launch(**variables: str) -> list[str]:
    """What two processes say that one launcher has started, one after the other."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH_TWO], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def test_a_launcher_without_a_name_is_known_by_its_process() -> None:
    first, again = ids_of_a_launch(TORCHELASTIC_RUN_ID="none", GROUP_WORLD_SIZE="1")
    assert first == again
    assert first not in ids_of_a_launch(TORCHELASTIC_RUN_ID="none", GROUP_WORLD_SIZE="1")


@pytest.mark.parametrize(
    "variables",
    [{"SLURM_JOB_ID": "7"}, {"TORCHELASTIC_RUN_ID": "a7f3"}, {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2"}],
)
def test_a_launch_is_the_same_on_another_machine(variables: dict[str, str]) -> None:
    """Where it has a name, and where it can't be told apart: what was begun anew is not begun anew again."""
    assert len({*ids_of_a_launch(**variables), *ids_of_a_launch(**variables)}) == 1
