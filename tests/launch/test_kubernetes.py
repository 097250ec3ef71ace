"""The Kubernetes manifests: that they fit what they start, and that their pods' own command survives a lost pod."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from bench.tiny import make_shards, write_config
from dtrain.arguments import build_parser
from dtrain.config import load_config
from launch.outcome import AGAIN, DONE, FAILED, NO_PROGRESS, parse

from ..servers import free_port
from .metadata_server import wait_until

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "kubernetes"
MANIFESTS = ["one_pod", "many_pods"]
LAUNCHERS_GRACE_SECONDS = 30
LIMIT_SECONDS = 180


def job(name: str) -> Any:
    """The Job of a manifest."""
    (found,) = [part for part in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()) if part["kind"] == "Job"]
    return found


def container(name: str, index: int = 0) -> Any:
    """That of a Job's pod number `index`, as Kubernetes starts it."""
    (found,) = job(name)["spec"]["template"]["spec"]["containers"]
    found["args"] = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in found["args"]]
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_exit_codes_are_those_of_an_attempt(name: str) -> None:
    spec = job(name)["spec"]
    actions: dict[int, str] = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes:
            assert codes["containerName"] == container(name)["name"]
            assert codes["operator"] == "In"
            assert codes["values"] == sorted(codes["values"]), "Kubernetes wants them in order"
            actions |= dict.fromkeys(codes["values"], rule["action"])
    assert {AGAIN: "Ignore"} | dict.fromkeys((FAILED, 2, 126, 127), "FailJob") == actions
    assert NO_PROGRESS not in actions, "counts towards backoffLimit"
    assert DONE not in actions
    assert spec["backoffLimit"] > 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "else Kubernetes refuses the policy"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > LAUNCHERS_GRACE_SECONDS


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_command_is_understood(name: str) -> None:
    found = container(name)
    assert found["command"] == ["python", "-m", "launch.outcome", "--"]
    launcher, run, mistake = parse(found["command"][3:] + found["args"])
    assert not mistake
    if launcher[0] == "accelerate":
        arguments = launch_command_parser().parse_args(launcher[2:])
        assert (ROOT / arguments.config_file).is_file()
    else:
        arguments = get_args_parser().parse_args(launcher[1:])
    assert arguments.module
    assert arguments.training_script == "dtrain"
    training, overrides = build_parser().parse_known_args(arguments.training_script_args)
    config = load_config(ROOT / training.config, overrides)
    assert str(config.run) == str(run)
    (mount,) = [each["mountPath"] for each in found["volumeMounts"] if each["name"] == "data"]
    assert str(config.run).startswith(f"{mount}/")
    assert str(config.data.manifest).startswith(f"{mount}/")


def test_many_pods_know_each_other() -> None:
    service, found = yaml.safe_load_all((FOLDER / "many_pods.yaml").read_text())
    spec, name = found["spec"], found["metadata"]["name"]
    arguments = get_args_parser().parse_args(container("many_pods")["args"][1:])
    assert spec["completionMode"] == "Indexed"
    assert str(spec["completions"]) == str(spec["parallelism"]) == arguments.nnodes
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert arguments.master_addr == f"{name}-0.{service['metadata']['name']}"


def test_the_image_holds_what_the_pods_name() -> None:
    lines = dict(line.split(maxsplit=1) for line in (FOLDER / "Dockerfile").read_text().splitlines() if line[0] != "#")
    assert lines["COPY"] == ". ."
    for name in MANIFESTS:
        assert container(name)["workingDir"] == lines["WORKDIR"]
        assert container(name)["image"].startswith("dtrain:")
    left_out = (ROOT / ".dockerignore").read_text().split()
    for needed in ("accelerate_config.yaml", "configs", "constraints.txt", "dtrain", "launch", "shard_tools"):
        assert (ROOT / needed).exists()
        assert needed not in left_out


class Pods:
    """What many_pods.yaml starts, on this machine: each pod a process, which Kubernetes would make again."""

    def __init__(self, folder: Path, replaced: dict[str, str]) -> None:
        self._folder = folder
        self._replaced = replaced
        self.count = job("many_pods")["spec"]["completions"]

    def start(self) -> "list[subprocess.Popen[bytes]]":
        return [self._start(index) for index in range(self.count)]

    def _start(self, index: int) -> "subprocess.Popen[bytes]":
        text = shlex.join(container("many_pods", index)["args"])
        for old, new in self._replaced.items():
            assert old in text, text
            text = text.replace(old, new)
        # `python -m launch.outcome --`, with less patience.
        code = "import launch.outcome as o; o.LINGER_SECONDS = 3.0; raise SystemExit(o.main())"
        binaries = str(Path(sys.executable).parent)
        with (self._folder / f"pod-{index}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code, "--", *shlex.split(text)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{binaries}:{os.environ['PATH']}"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("pod-*.log")))


def test_a_pod_is_taken_away_and_the_next_ones_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shards = make_shards(tmp_path / "data")
    config = write_config(tmp_path / "config.yaml", run=run, shards=shards, second_epochs=1)
    pods = Pods(
        tmp_path,
        {
            "dtrain-0.dtrain": "127.0.0.1",
            "29500": str(free_port()),
            "--nproc-per-node=auto": "--nproc-per-node=1",
            "configs/demo.yaml": str(config),
            "/data/shards": str(shards),
            "/data/runs/demo": str(run),
        },
    )
    first = pods.start()
    wait_until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size, pods.said())
    first[1].send_signal(signal.SIGTERM)
    assert [pod.wait(LIMIT_SECONDS) for pod in first] == [AGAIN, AGAIN], pods.said()
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "preempted"

    assert [pod.wait(LIMIT_SECONDS) for pod in pods.start()] == [DONE, DONE], pods.said()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    resumed = [event["global_step"] for event in events if event["event"] == "resume"]
    assert resumed == [status["global_step"]], "no step is done twice"
