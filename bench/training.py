"""Launches trainings as users do, finds their processes, and reads what their run folders say. Judges nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import psutil

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LAUNCH_TIMEOUT = 240.0

_MARK = "BENCH_LAUNCH_LOG"
"""A variable that all processes of a launch inherit, so that they are found when their launcher is gone."""

Role = Literal["launcher", "rank", "decoder", "other"]


class Member(NamedTuple):
    """A living process of a launch."""

    process: psutil.Process
    role: Role
    rank: int
    """Of the training process that it is, or decodes for; -1 for the launcher."""

    def __str__(self) -> str:
        match self.role:
            case "launcher":
                return "the launcher"
            case "rank":
                return f"rank {self.rank}"
            case "decoder":
                return f"a decoder of rank {self.rank}"
            case "other":
                return f"process {self.process.pid}"


@dataclass
class Launched:
    """A training under the real launcher, with all that it prints in a file."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @classmethod
    def start(cls, config: Path, log: Path, *options: str, processes: int) -> Self:
        """`accelerate-launch … -m dtrain train CONFIG`, as a user would; `options` override keys of it."""
        command = [
            *(str(BIN / "accelerate-launch"), "--config_file", str(ROOT / "accelerate_config.yaml")),
            *("--num_processes", str(processes), "-m", "dtrain", "train", str(config), *options),
        ]
        environment = os.environ | {_MARK: str(log)}
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        return cls(process, log)

    def tree(self) -> list[psutil.Process]:
        """The launcher and every process below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def members(self) -> list[Member]:
        """Every process of the launch that is alive, also without its launcher; by role, rank and number."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                if environment.get(_MARK) == str(self.log) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(Member(process, self._role(process, environment), int(environment.get("RANK", "-1"))))
        return sorted(found, key=lambda member: (member.role, member.rank, member.process.pid))

    def _role(self, process: psutil.Process, environment: dict[str, str]) -> Role:
        if process.pid == self.process.pid:
            return "launcher"
        if "decode_process" in str(process.cmdline()):
            return "decoder"
        return "rank" if "RANK" in environment else "other"

    def finish(self) -> int:
        """Wait for the end and return the exit status of the launcher."""
        return self.process.wait(LAUNCH_TIMEOUT)

    def kill(self) -> None:
        """SIGKILL to every process at once: what a machine that loses power looks like."""
        for process in self.tree():
            process.send_signal(signal.SIGKILL)
        self.process.wait(LAUNCH_TIMEOUT)


@dataclass
class Training:
    """A run folder, as somebody sees it who only reads its files, at any time."""

    folder: Path

    def last_step(self) -> int:
        """The last global step in metrics.jsonl; 0 if there is none."""
        last = [*self._whole_lines("metrics.jsonl")][-1:]
        return int(json.loads(last[0])["global_step"]) if last else 0

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSON Lines file of the run."""
        return [json.loads(line) for line in self._whole_lines(name)]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """What happened, without lines that a kill cut off."""
        found = []
        for line in self._whole_lines("events.jsonl"):
            with suppress(ValueError):
                found.append(json.loads(line))
        return [event for event in found if event["event"] in kinds]

    def status(self) -> dict[str, Any]:
        """The content of status.json; empty if there is none."""
        try:
            status: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return status

    def checkpoints(self) -> list[str]:
        """What is in the folder of checkpoints, also what has not got its final name."""
        try:
            return sorted(path.name for path in (self.folder / "checkpoints").iterdir())
        except FileNotFoundError:
            return []

    def final(self) -> dict[str, bytes]:
        """The bytes of what a run ends with: weights, their average, optimizer, and all that was logged as learned.

        Raises ValueError if its last checkpoint does not list weights, average and optimizer's state.
        """
        last = self.folder / "checkpoints" / self.checkpoints()[-1]
        listed = [name for name in json.loads((last / "files.json").read_text()) if name != "state.json"]
        if {name.split(".")[0] for name in listed} != {"model", "average", "optimizer"}:
            raise ValueError(f"{last / 'files.json'}: lists {', '.join(listed)}")
        files = [*(last / name for name in listed), self.folder / "metrics.jsonl"]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def _whole_lines(self, name: str) -> Iterator[str]:
        try:
            text = (self.folder / name).read_text()
        except FileNotFoundError:
            return iter(())
        return iter(text.split("\n")[:-1])
