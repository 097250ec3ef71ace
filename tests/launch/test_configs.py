"""The launcher configurations and every command in docs/launching.md, as the launchers themselves understand them."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from dtrain.arguments import build_parser
from dtrain.config import load_config
from launch import outcome, watch

ROOT = Path(__file__).parents[2]
ROOT_CONFIG = ROOT / "accelerate_config.yaml"
CONFIGS = [ROOT_CONFIG, *sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))]
DOCS = ROOT / "docs" / "launching.md"
ACCELERATE = Path(sys.executable).with_name("accelerate")

# One write for the line: processes that print at the same time must not get into each other's.
SHOW = r"import os; os.write(1, 'process {RANK} of {WORLD_SIZE}\n'.format(**os.environ).encode())"

OBEY = """
import os, pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "obeyed").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
time.sleep(60)
"""


def processes_by_default() -> int:
    """What `num_processes: auto` comes to on this machine."""
    if torch.accelerator.is_available():
        return torch.accelerator.device_count()
    return len(os.sched_getaffinity(0))


def documented_commands(program: str) -> list[list[str]]:
    """The arguments of every `program` command in the code blocks of docs/launching.md."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(), flags=re.DOTALL | re.MULTILINE)
    commands = []
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        while re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words[0] == program:
            commands.append(words[1:])
    return commands


def check_trainer_arguments(arguments: list[str]) -> None:
    """The trainer takes them, and its configuration is there and valid."""
    parsed, overrides = build_parser().parse_known_args(arguments)
    assert parsed.command == "train"
    load_config(ROOT / parsed.config, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_loads_the_file(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == "MULTI_GPU", "else a single process is started past torchrun"
    given = set(yaml.safe_load(path.read_text()))
    assert given <= set(vars(config))
    if config.num_machines > 1:
        assert "num_processes" not in given, "must be asked for: the total is not known here"


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ("accelerate_config.yaml", [], None),
        ("accelerate_config.yaml", ["--num_processes", "1"], 1),
        ("accelerate_config.yaml", ["--num_processes", "2"], 2),
        ("launch/accelerate/one_gpu.yaml", [], 1),
        ("launch/accelerate/cpu.yaml", [], 2),
        ("launch/accelerate/cpu.yaml", ["--num_processes", "1", "--num_cpu_threads_per_process", "1"], 1),
    ],
)
def test_it_launches_as_many_processes_as_it_says(
    tmp_path: Path, config: str, options: list[str], expected: int | None
) -> None:
    (tmp_path / "show_processes.py").write_text(SHOW)
    done = subprocess.run(
        [str(ACCELERATE), "launch", "--config_file", str(ROOT / config), *options, "-m", "show_processes"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    world = expected or processes_by_default()
    said = re.findall(r"process (\d+) of (\d+)", done.stdout)
    assert sorted(said) == sorted((str(rank), str(world)) for rank in range(world))


def test_two_machines_become_one_group(tmp_path: Path) -> None:
    (tmp_path / "show_processes.py").write_text(SHOW)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            [
                *(str(ACCELERATE), "launch", "--config_file", str(ROOT / "launch/accelerate/multi_node.yaml")),
                *("--num_machines", "2", "--machine_rank", str(rank), "--num_processes", "2"),
                *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "-m", "show_processes"),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [machine.communicate(timeout=120)[0].strip() for machine in machines]
    assert said == ["process 0 of 2", "process 1 of 2"]
    assert [machine.returncode for machine in machines] == [0, 0]


def test_threads_of_the_cpu_config_share_the_cores(tmp_path: Path) -> None:
    script = tmp_path / "threads.py"
    script.write_text(r"import os; os.write(1, 'threads {OMP_NUM_THREADS}\n'.format(**os.environ).encode())")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [str(ACCELERATE), "launch", "--config_file", str(ROOT / "launch/accelerate/cpu.yaml"), str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    expected = max((psutil.cpu_count(logical=False) or 1) // 2, 1)
    assert re.findall(r"threads (\d+)", done.stdout) == [str(expected)] * 2


@pytest.mark.parametrize("config", ["accelerate_config.yaml", "launch/accelerate/one_gpu.yaml"])
def test_sigterm_to_the_launcher_reaches_a_single_process(tmp_path: Path, config: str) -> None:
    script = tmp_path / "obey.py"
    script.write_text(OBEY)
    command = [str(ACCELERATE), "launch", "--config_file", str(ROOT / config), "--num_processes", "1"]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([*command, str(script), str(tmp_path)], stdout=log, stderr=log)
    try:
        pid = tmp_path / "pid"
        deadline = time.monotonic() + 60
        while not (pid.exists() and pid.read_text()):
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        trainer = psutil.Process(int(pid.read_text()))
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(30)
        assert (tmp_path / "obeyed").read_text() == "SIGTERM"
        assert not trainer.is_running(), "the trainer outlives its launcher"
    finally:
        for process in [*psutil.Process().children(recursive=True)]:
            if str(script) in process.cmdline():
                process.kill()
        launcher.wait()


@pytest.mark.parametrize("arguments", documented_commands("accelerate"), ids=" ".join)
def test_documented_accelerate_command(arguments: list[str]) -> None:
    assert arguments.pop(0) == "launch"
    parsed = launch_command_parser().parse_args(arguments)
    config = load_config_from_file(str(ROOT / parsed.config_file))
    assert parsed.module
    assert parsed.training_script == "dtrain"
    check_trainer_arguments(parsed.training_script_args)
    machines = parsed.num_machines or config.num_machines
    if machines > 1:
        assert parsed.main_process_ip
        assert parsed.machine_rank in range(machines)
        assert parsed.num_processes % machines == 0


@pytest.mark.parametrize("arguments", documented_commands("torchrun"), ids=" ".join)
def test_documented_torchrun_command(arguments: list[str]) -> None:
    parsed = get_args_parser().parse_args(arguments)
    assert parsed.module
    assert parsed.training_script == "dtrain"
    check_trainer_arguments(parsed.training_script_args)
    assert parsed.standalone or (parsed.nnodes, parsed.node_rank) == ("2", 0)


@pytest.mark.parametrize("arguments", documented_commands("sbatch"), ids=" ".join)
def test_documented_sbatch_command(arguments: list[str]) -> None:
    while arguments[0].startswith("--"):
        assert "=" in arguments.pop(0), "options of sbatch are written as one word here"
    script, *rest = arguments
    assert (ROOT / script).is_file()
    check_trainer_arguments(["train", *rest])


def test_every_config_and_launcher_is_documented() -> None:
    text = DOCS.read_text()
    assert [path.name for path in CONFIGS if str(path.relative_to(ROOT)) not in text] == []
    assert len(documented_commands("accelerate")) >= 5
    assert len(documented_commands("torchrun")) >= 4
    assert len(documented_commands("sbatch")) >= 2
    assert len(documented_commands("python")) >= 3


@pytest.mark.parametrize("arguments", documented_commands("kubectl") + documented_commands("docker"), ids=" ".join)
def test_documented_file_for_kubernetes(arguments: list[str]) -> None:
    assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()


@pytest.mark.parametrize("arguments", documented_commands("python"), ids=" ".join)
def test_documented_program_before_the_launcher(arguments: list[str]) -> None:
    cut = arguments.index("--")
    assert arguments[0] == "-m"
    if arguments[1] == "launch.outcome":
        launcher, _, mistake = outcome.parse(arguments[cut:])
        assert not mistake
    else:
        assert arguments[1] == "launch.watch"
        launcher = watch.parse(arguments[2:]).command
    assert launcher[1:] in documented_commands(launcher[0])
