"""The batch scripts: what train.sbatch decides, with stand-ins for Slurm; and both of them on a real small cluster."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
PACK_SCRIPT = SCRIPT.with_name("pack.sbatch")
DEADLINE = 60.0

PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
"""What the cluster needs, and the Debian packages that have it."""


# What the script decides ----------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """An attempt of the job under stand-ins for srun and scontrol: what happens to the training, and the outcome."""

    folder: Path
    process: subprocess.CompletedProcess[str] = field(init=False)

    def __call__(
        self,
        *,
        state: str | None = None,
        checkpoint: int | None = None,
        srun: int = 0,
        job_state: str = "RUNNING",
        arguments: tuple[str, ...] = (),
        real_python: bool = False,
    ) -> "Attempt":
        """`state` and `checkpoint` are what the training writes, None for nothing; `srun` is how it exits."""
        commands, run = self.folder / "bin", self.folder / "run"
        commands.mkdir(exist_ok=True)
        training = f"echo srun >> {self.folder}/calls; mkdir -p {run}/checkpoints;"
        if checkpoint is not None:
            training += f"mkdir -p {run}/checkpoints/step-{checkpoint:08d};"
        if state is not None:
            training += f"""echo '{{"state": "{state}"}}' > {run}/status.new; mv {run}/status.new {run}/status.json;"""
        scontrol = f"""
            case "$1 $2" in
                "show hostnames") echo node1 ;;
                "show job") echo "JobId=7 JobName=x JobState={job_state} Reason=None" ;;
                *) echo "scontrol $*" >> {self.folder}/calls ;;
            esac"""
        # The script asks Python for the run folder, which takes the real one seconds, and for the state in status.json.
        python = f"""if [[ $1 == - ]]; then echo {run}; else exec {sys.executable} "$@"; fi"""
        for name, body in (("srun", f"{training} exit {srun}"), ("scontrol", scontrol), ("python", python)):
            (commands / name).write_text(f"#!/bin/bash\n{body}\n")
            (commands / name).chmod(0o755)
        (self.folder / "calls").unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHON": sys.executable if real_python else str(commands / "python"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_NNODES": "1",
        }
        self.process = subprocess.run(
            ["bash", str(SCRIPT), "configs/demo.yaml", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return self

    @property
    def outcome(self) -> str:
        """requeued, completed or failed, as Slurm sees it."""
        if self.requeued:
            assert self.process.returncode == 0, self.process.stderr
            return "requeued"
        return "failed" if self.process.returncode else "completed"

    @property
    def calls(self) -> list[str]:
        try:
            return (self.folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []

    @property
    def requeued(self) -> bool:
        return "scontrol requeue 7" in self.calls


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


@pytest.mark.parametrize(
    ("happens", "outcome"),
    [
        ({"state": "done", "checkpoint": 9}, "completed"),
        ({"state": "preempted", "checkpoint": 5}, "requeued"),
        ({"state": "preempted", "checkpoint": 5, "srun": 1}, "requeued"),
        ({"state": "running", "checkpoint": 5, "srun": 137}, "requeued"),
        ({"state": "failed", "srun": 1}, "failed"),
        ({"state": "failed", "checkpoint": 5, "srun": 1}, "requeued"),
        ({"state": "failed", "srun": 0}, "requeued"),
        ({"srun": 1}, "failed"),
        ({"srun": 0}, "requeued"),
        ({"state": "preempted", "checkpoint": 5, "job_state": "COMPLETING"}, "completed"),
        ({"state": "preempted", "checkpoint": 5, "job_state": "CANCELLED"}, "completed"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(f"{k}={v}" for k, v in value.items()),
)
def test_what_comes_of_an_attempt(attempt: Attempt, happens: dict[str, Any], outcome: str) -> None:
    assert attempt(**happens).outcome == outcome


def test_it_gives_up_after_three_interruptions_without_a_new_checkpoint(attempt: Attempt) -> None:
    assert attempt(state="preempted", checkpoint=5).outcome == "requeued"
    assert attempt(state="preempted").outcome == "requeued"
    assert attempt(state="running", srun=1).outcome == "requeued"
    assert attempt(state="preempted", checkpoint=6).outcome == "requeued", "a new checkpoint counts from the beginning"
    assert attempt(state="preempted").outcome == "requeued"
    assert attempt(state="preempted").outcome == "requeued"
    last = attempt(state="preempted")
    assert last.outcome == "failed"
    assert "3 attempts in a row brought no new checkpoint" in last.process.stderr


def test_an_older_status_is_not_taken_for_this_attempt(attempt: Attempt) -> None:
    assert attempt(state="preempted", checkpoint=5).outcome == "requeued"
    refused = attempt(srun=1)
    assert refused.outcome == "failed"
    assert "could not begin" in refused.process.stderr
    assert attempt(state="done").outcome == "completed"
    assert attempt(srun=0).outcome == "completed", "the run is done already"
    assert attempt(srun=1).outcome == "failed", "done, but the trainer refused something"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--modle.width", "2"), "did you mean 'model'"),
        (("--fresh",), "--fresh would delete the run at every requeue"),
    ],
)
def test_a_mistake_in_the_command_starts_nothing(attempt: Attempt, arguments: tuple[str, ...], message: str) -> None:
    assert attempt(arguments=arguments, real_python=True).outcome == "failed"
    assert message in attempt.process.stderr
    assert attempt.calls == []


def test_outside_of_slurm_it_says_so(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}
    command = ["bash", str(SCRIPT), "configs/demo.yaml"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is for sbatch" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck (Debian package shellcheck)")
def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run(["shellcheck", str(SCRIPT), str(PACK_SCRIPT)], check=True)


# A real preemption ----------------------------------------------------------------------------------------------------


def missing() -> str | None:
    """Why no cluster can be started here."""
    packages = {package for program, package in PACKAGES.items() if shutil.which(program, path=_path()) is None}
    if packages:
        return f"needs the Debian packages {' and '.join(sorted(packages))}"
    return None if os.geteuid() == 0 else "needs root to start Slurm's daemons"


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """munged, slurmctld and two slurmd on this machine, with all their files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.conf)}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Return when both nodes are idle."""
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir()
        self._write_configuration()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._spawn(
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.sock"),
            *(f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/munged.seed"),
            f"--log-file={self.folder}/log/munged.log",
        )
        wait_until((self.folder / "munge.sock").exists, self.describe)
        self._spawn("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._spawn("slurmd", "-D", "-N", node)
        wait_until(lambda: self.ask("sinfo", "-h", "-o", "%T") == "idle", self.describe)

    def stop(self) -> None:
        """End all jobs, the daemons, and whatever was started through them and is still there."""
        for job in self.ask("squeue", "-h", "-o", "%A").split():
            self.ask("scancel", "--signal=KILL", "--full", job)
            self.ask("scancel", job)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in psutil.process_iter():
            if self._owns(process):
                process.kill()

    def _owns(self, process: psutil.Process) -> bool:
        """Jobs have the path of slurm.conf in their environment; slurmstepd hides its own, but has a socket here."""
        try:
            if process.environ().get("SLURM_CONF") == str(self.conf):
                return True
            sockets = process.net_connections("unix") if process.name() == "slurmstepd" else []
            return any(str(self.folder) in str(one.laddr) for one in sockets)
        except psutil.Error:
            return False

    def submit(self, *arguments: str, **variables: str) -> str:
        """The id of a new job."""
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={self.folder}/job-%j.out", *arguments],
            cwd=ROOT,
            env={**self.environment, **variables},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands says; empty if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT
        )
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", "--oneliner", number)))

    def output(self, number: str) -> str:
        path = self.folder / f"job-{number}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def describe(self) -> str:
        """All logs, for a message."""
        logs = [*(self.folder / "log").iterdir(), *self.folder.glob("job-*.out")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in logs)

    def _spawn(self, *command: str) -> None:
        name = "-".join(word for word in command if not word.startswith("-"))
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _write_configuration(self) -> None:
        host = socket.gethostname().split(".")[0]
        ports = free_ports(3)
        self.conf.write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.sock
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
""")
        version = re.search(r"(\d+)\.", self.ask("slurmd", "-V"))
        plugin = "disabled" if version and int(version[1]) >= 23 else "cgroup/v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until(true: Callable[[], bool], describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes with one core each."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@dataclass
class Training:
    """A configuration for the cluster, and what became of it."""

    config: Path
    run: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        try:
            lines = (self.run / "events.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return status

    def processes(self) -> list[psutil.Process]:
        """Everything that was started to train this."""
        return [process for process in psutil.process_iter() if str(self.config) in command_line(process)]

    def ranks(self) -> list[psutil.Process]:
        return [process for process in self.processes() if "RANK" in process.environ()]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """40 steps on a tiny data set."""
    rooms, shards, run, config = (tmp_path / name for name in ("rooms", "shards", "run", "config.yaml"))
    for command in (
        ["sample", str(rooms), "--backgrounds", "4", "--foregrounds", "1", "--size", "32"],
        ["build", str(rooms), str(shards)],
    ):
        subprocess.run([sys.executable, "-m", "shard_tools", *command], check=True, cwd=ROOT, capture_output=True)
    config.write_text(
        yaml.safe_dump(
            {
                "run": str(run),
                "data": {"manifest": str(shards), "workers": 1},
                "model": {"width": 0.0625},
                "stages": [{"size": 8, "batch": 12, "epochs": 4}],
                "checkpoint": {"every": "6 steps"},
                "evaluate": {"samples": 8, "every_epochs": 4},
            }
        )
    )
    return Training(config, run)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_preempted_job_requeues_itself_and_ends_where_it_should(cluster: Cluster, training: Training) -> None:
    number = cluster.submit(
        *("--nodes=2", "--cpus-per-task=1", str(SCRIPT), str(training.config)),
        PYTHON=sys.executable,
        PROCESSES_PER_NODE="1",
        MASTER_ADDR="127.0.0.1",
    )
    wait_until(lambda: bool(training.events("checkpoint")), cluster.describe)
    # Stand still until the preemption, which begins with SIGCONT, however fast this machine is.
    ranks = training.ranks()
    assert len(ranks) == 2
    for rank in ranks:
        rank.send_signal(signal.SIGSTOP)

    urgent = cluster.submit("--partition=urgent", "--nodelist=n2", "--wrap=true")
    wait_until(lambda: cluster.job(urgent)["JobState"] == "COMPLETED", cluster.describe)
    wait_until(lambda: cluster.job(number)["JobState"] == "PENDING", cluster.describe)
    assert cluster.job(number)["Restarts"] == "1"
    assert not training.processes()
    (preempted,) = training.events("preempted")
    assert training.status()["state"] == "preempted"

    # slurmd compares whole seconds, and takes an attempt that starts in the one in which the last ended for revoked.
    time.sleep(5)
    cluster.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
    wait_until(lambda: cluster.job(number)["JobState"] == "COMPLETED", cluster.describe)
    (resume,) = training.events("resume")
    assert resume["global_step"] == preempted["global_step"]
    assert resume["repeated_steps"] == 0
    assert resume["processes"] == 2
    assert training.status()["state"] == "done"
    assert f"job {number}, attempt 2, 2 node(s)" in cluster.output(number)
    assert not training.processes()


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_job_that_cannot_begin_is_not_requeued(cluster: Cluster, training: Training) -> None:
    number = cluster.submit(
        *("--cpus-per-task=1", str(SCRIPT), str(training.config), "--data.manifest", "nowhere"),
        PYTHON=sys.executable,
        PROCESSES_PER_NODE="1",
    )
    wait_until(lambda: cluster.job(number)["JobState"] == "FAILED", cluster.describe)
    assert cluster.job(number)["Restarts"] == "0"
    assert "nowhere/shards.json: no such file" in cluster.output(number)
    assert "could not begin" in cluster.output(number)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_an_array_packs_what_one_machine_packs(cluster: Cluster, tmp_path: Path) -> None:
    rooms, shards, whole = (tmp_path / name for name in ("rooms", "shards", "whole"))

    def shard_tools(*command: object) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "shard_tools", *map(str, command)], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    shard_tools("sample", rooms, "--backgrounds", 4, "--foregrounds", 1, "--size", 32)
    cluster.submit(
        *("--array=1-3", "--cpus-per-task=1", str(PACK_SCRIPT), str(rooms), str(shards), "--shard-size", "9"),
        PYTHON=sys.executable,
    )
    said = "when all 3 parts are there: shard-tools merge"
    wait_until(
        lambda: sum(said in path.read_text() for path in cluster.folder.glob("job-*.out")) == 3, cluster.describe
    )
    shard_tools("merge", shards)
    shard_tools("build", rooms, whole, "--shard-size", 9)
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == files, cluster.describe()
