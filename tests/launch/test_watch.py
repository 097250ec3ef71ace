"""Preemption notices become SIGTERM: real watchers and commands, servers that play the clouds' metadata services."""

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.clouds import Azure, find_cloud
from launch.metadata import MetadataError, MetadataService
from launch.watch import parse
from tests.launch.metadata_server import LIMIT_SECONDS, Metadata, event, metadata, wait_until

ROOT = Path(__file__).parents[2]

COMMAND = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def note(number, frame):
    with open(folder / "signals", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, note)
blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, []))
(folder / "ready").write_text(f"{os.getpid()} {blocked}\\n")
began = time.monotonic()
while not (folder / "end").exists() and time.monotonic() < began + 120:
    time.sleep(0.01)
sys.exit(int((folder / "end").read_text()))
"""
"""Notes the signals that it gets and goes on until it is allowed to end."""

OBEY = """
import os, pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "obeyed").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").write_text(f"{os.getpid()} 0\\n")
time.sleep(120)
"""


@pytest.fixture
def aws() -> Iterator[Metadata]:
    with metadata("aws") as server:
        yield server


class Watched:
    """A watcher and its command, in `folder`."""

    def __init__(self, folder: Path, url: str, *options: str, command: tuple[str, ...] | None = None, **popen: Any):
        self.folder = folder
        if command is None:
            (folder / "command.py").write_text(COMMAND)
            command = ("--", sys.executable, str(folder / "command.py"), str(folder))
        arguments = ["--metadata", url, "--every", "0.05", *options, *command]
        # A proxy that is not there: nothing would be heard through it.
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
        environment = {**os.environ, **proxies, "no_proxy": "", "PYTHONPATH": str(ROOT)}
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launch.watch", *arguments],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                **popen,
            )

    def wait_for_command(self) -> None:
        """Until the command has begun."""
        wait_until(lambda: (self.folder / "ready").exists() and self._ready().endswith("\n"), self.said())
        assert self._ready().split()[1] == "0", "signals are blocked in the command"

    def _ready(self) -> str:
        return (self.folder / "ready").read_text()

    @property
    def command_pid(self) -> int:
        return int(self._ready().split()[0])

    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait_for_word(self, word: str) -> None:
        wait_until(lambda: word in self.said(), f"does not say {word!r}")

    def signals(self) -> list[str]:
        """What the command got so far."""
        noted = self.folder / "signals"
        return noted.read_text().split() if noted.exists() else []

    def wait_for_signals(self, expected: list[str]) -> None:
        wait_until(lambda: self.signals() == expected, f"signals: {self.signals()}; {self.said()}")

    def allow_end(self, status: int = 0) -> None:
        (self.folder / "end.new").write_text(str(status))
        (self.folder / "end.new").rename(self.folder / "end")

    def end(self, status: int = 0) -> int:
        """Let the command end with `status`; the watcher's exit status."""
        self.allow_end(status)
        return self.process.wait(LIMIT_SECONDS)


Watch = Callable[..., Watched]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Starts watchers; ends what is left of them."""
    started: list[Watched] = []

    def start(*arguments: Any, **keywords: Any) -> Watched:
        started.append(Watched(tmp_path, *arguments, **keywords))
        return started[-1]

    yield start
    for watched in started:
        watched.process.kill()
        watched.process.wait()
        if (tmp_path / "ready").exists():
            with suppress(ProcessLookupError):
                os.kill(watched.command_pid, signal.SIGKILL)


ANNOUNCED = {
    "aws": "aws: spot instance-action 'terminate', at 2031-09-18T08:22:00Z: SIGTERM sent to the launcher",
    "gcp": "gcp: preempted, at once or after the notice time of this machine: SIGTERM sent to the launcher",
    "azure": "azure: Preempt of Trainer_3, not before Thu, 18 Sep 2031 18:29:47 GMT: SIGTERM sent to the launcher",
}


@pytest.mark.parametrize("choice", ["named", "auto"])
@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_notice_becomes_one_sigterm(watch: Watch, cloud: str, choice: str) -> None:
    with metadata(cloud) as server:
        watched = watch(server.url, *(["--cloud", cloud] if choice == "named" else []))
        watched.wait_for_command()
        watched.wait_for_word(f"{cloud}: asking {server.url} for notices every 0.05 s")
        server.wait_for_requests(3)
        assert watched.signals() == []
        server.give_notice()
        watched.wait_for_signals(["SIGTERM"])
        watched.wait_for_word("SIGTERM")
        assert watched.end(3) == 3, "the exit status is the command's"
    assert watched.signals() == ["SIGTERM"]
    assert [line for line in watched.said().splitlines() if "SIGTERM" in line] == [f"launch.watch: {ANNOUNCED[cloud]}"]
    assert not [request for request in server.requests if request.startswith("POST")], "nothing is confirmed"


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_without_a_notice_nothing_happens(watch: Watch, cloud: str) -> None:
    with metadata(cloud) as server:
        watched = watch(server.url, "--cloud", cloud)
        watched.wait_for_command()
        server.wait_for_requests(10)
        assert watched.end() == 0
    assert watched.signals() == []
    assert len(watched.said().splitlines()) == 1


def test_an_expired_token_is_renewed(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url, "--cloud", "aws")
    watched.wait_for_word("asking")
    aws.valid_tokens.clear()
    aws.wait_for_requests(5)
    aws.give_notice()
    watched.wait_for_word("SIGTERM")
    watched.wait_for_command()
    assert len(aws.tokens) == 2, "one token at the beginning, one after it expired"
    assert len(watched.said().splitlines()) == 2, "that it expired is no news"


@pytest.mark.parametrize(
    "harmless",
    [
        event("Preempt", "trainer_30", "other"),
        event("Terminate"),
        event("Freeze", "trainer_3"),
        event("Reboot", "trainer_3", status="Started"),
        event("Redeploy", "trainer_3"),
    ],
    ids=lambda harmless: harmless["EventType"],
)
def test_events_of_other_machines_and_harmless_ones_are_ignored(watch: Watch, harmless: dict[str, Any]) -> None:
    with metadata("azure") as server:
        server.events = [harmless]
        watched = watch(server.url, "--cloud", "azure")
        watched.wait_for_command()
        server.wait_for_requests(5)
        assert watched.signals() == []
        server.events = [harmless, event("Terminate", "other", "TRAINER_3", status="Started")]
        watched.wait_for_signals(["SIGTERM"])
        watched.wait_for_word("azure: Terminate of Trainer_3, begun: SIGTERM sent")


FAULTS = [
    *("404", "403", "500", "503", "429", "not http", "cut", "redirect"),
    *("<html>\nWelcome</html>", "Grüezi", "text:", "[1]", "{}", "TRUE", '{"Events": [null]}', "[" * 100_000),
    '{"action": "reticulate", "time": "2031-09-18T08:22:00Z"}',
]


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_broken_service_does_no_harm_and_is_said_once(watch: Watch, cloud: str) -> None:
    with metadata(cloud) as server:
        server.fault = FAULTS[0]
        watched = watch(server.url, "--cloud", cloud)
        watched.wait_for_command()
        for fault in FAULTS:
            server.fault = fault
            server.wait_for_requests(3)
        assert watched.signals() == []
        assert "the command runs on, without notices" in watched.said()
        assert len(watched.said().splitlines()) == 1
        server.fault = ""
        watched.wait_for_word(f"{cloud}: asking")
        server.give_notice()
        watched.wait_for_signals(["SIGTERM"])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[:12])
def test_a_server_that_answers_otherwise_is_no_cloud(aws: Metadata, fault: str) -> None:
    aws.fault = fault
    with pytest.raises(MetadataError):
        find_cloud(MetadataService(aws.url))


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_an_absent_service_does_no_harm_and_is_said_once(watch: Watch, cloud: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    watched = watch(url, "--cloud", cloud)
    watched.wait_for_command()
    watched.wait_for_word(f"{cloud}: no usable answer from {url} (Connection refused); the command runs on")
    assert watched.end() == 0
    assert watched.signals() == []
    assert len(watched.said().splitlines()) == 1


@pytest.mark.parametrize("cloud", ["aws", "azure"])
def test_a_silent_service_keeps_neither_the_command_nor_its_end(watch: Watch, aws: Metadata, cloud: str) -> None:
    aws.fault = "hang"
    watched = watch(aws.url, "--cloud", cloud)
    watched.wait_for_command()
    aws.wait_for_requests(1 - len(aws.requests))
    assert watched.end(4) == 4
    assert watched.said() == ""


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_request_has_an_end(aws: Metadata, fault: str) -> None:
    aws.fault = fault
    with pytest.raises(MetadataError, match=r"no answer within 0\.2 s"):
        MetadataService(aws.url, seconds=0.2).ask("GET", "/", {})


def test_azure_may_take_longer_for_the_first_events() -> None:
    with metadata("azure") as server:
        azure = Azure(MetadataService(server.url, seconds=1.0))
        server.first_events_after = 1.5
        assert azure.notice() is None
        server.fault = "hang"
        with pytest.raises(MetadataError, match="no answer within 1 s"):
            azure.notice()


def test_a_connection_has_an_end() -> None:
    with socket.socket() as crowded, ExitStack() as waiting:
        crowded.bind(("127.0.0.1", 0))
        crowded.listen(0)
        for _ in range(3):  # nobody accepts them, and the next is not even answered
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(crowded.getsockname())
        url = f"http://127.0.0.1:{crowded.getsockname()[1]}"
        with pytest.raises(MetadataError, match=r"no answer within 0\.2 s"):
            MetadataService(url, seconds=0.2).ask("GET", "/", {})


def test_a_cloud_that_comes_late_is_found(watch: Watch) -> None:
    port = free_port()
    watched = watch(f"http://127.0.0.1:{port}", "--every", "0.02")
    watched.wait_for_word(
        f"no cloud's metadata service found at http://127.0.0.1:{port} (Connection refused); "
        "the command runs on, without notices; asking again every 0.6 s"
    )
    with metadata("gcp", port) as server:
        server.fault = "503"
        server.wait_for_requests(2 * 3 + 1)  # a third round has begun
        server.fault = ""
        watched.wait_for_word("gcp: asking")
        watched.wait_for_command()
        server.give_notice()
        watched.wait_for_signals(["SIGTERM"])
        watched.wait_for_word("SIGTERM")
    assert len(watched.said().splitlines()) == 3


def test_an_outage_is_said_once_and_so_is_its_end(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url, "--cloud", "aws")
    watched.wait_for_command()
    watched.wait_for_word("asking")
    aws.fault = "503"
    aws.wait_for_requests(5)
    assert "no usable answer" not in watched.said(), "a short one is no news"
    aws.wait_for_requests(40)
    assert watched.said().count("no usable answer") == 1
    assert "GET /latest/meta-data/spot/instance-action: HTTP status 503" in watched.said()
    aws.fault = ""
    wait_until(lambda: watched.said().count("asking http") == 2, watched.said())
    aws.give_notice()
    watched.wait_for_word("SIGTERM sent")
    assert len(watched.said().splitlines()) == 4


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM"), ("SIGUSR1", "SIGTERM"), ("SIGINT", "SIGINT")],
)
def test_signals_are_passed_on(watch: Watch, aws: Metadata, sent: str, arrives: str) -> None:
    watched = watch(aws.url)
    watched.wait_for_command()
    watched.process.send_signal(signal.Signals[sent])
    watched.wait_for_signals([arrives])
    assert watched.end(1) == 1


def test_a_launcher_is_told_to_stop_once(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url, "--cloud", "aws")
    watched.wait_for_command()
    watched.process.terminate()
    watched.wait_for_word("SIGTERM: SIGTERM sent to the launcher")
    watched.process.send_signal(signal.SIGHUP)
    watched.wait_for_word("SIGHUP: the launcher has been told already")
    aws.give_notice()
    watched.wait_for_word("2031-09-18T08:22:00Z: the launcher has been told already")
    watched.process.send_signal(signal.SIGINT)
    watched.wait_for_signals(["SIGTERM", "SIGINT"])
    assert watched.end() == 0


def test_a_signal_to_the_whole_group_arrives_once(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url, process_group=0)
    watched.wait_for_command()
    os.killpg(watched.process.pid, signal.SIGTERM)
    watched.wait_for_signals(["SIGTERM"])
    watched.wait_for_word("SIGTERM sent")
    assert watched.end() == 0
    assert watched.signals() == ["SIGTERM"]


def test_ctrl_c_on_the_terminal_arrives_once(watch: Watch, aws: Metadata) -> None:
    keyboard, terminal = pty.openpty()
    take_terminal = partial(fcntl.ioctl, terminal, termios.TIOCSCTTY, 0)
    watched = watch(aws.url, stdin=terminal, start_new_session=True, preexec_fn=take_terminal)
    watched.wait_for_command()
    os.write(keyboard, b"\x03")
    watched.wait_for_signals(["SIGINT"])
    os.write(keyboard, b"\x03")
    watched.wait_for_signals(["SIGINT", "SIGINT"])
    assert watched.end() == 0
    os.close(keyboard)
    os.close(terminal)


def test_what_nohup_ignores_stays_ignored(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url, preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN))
    watched.wait_for_command()
    watched.process.send_signal(signal.SIGHUP)
    watched.process.terminate()
    watched.wait_for_signals(["SIGTERM"])
    assert watched.end() == 0
    assert "SIGHUP" not in watched.said()


def test_the_command_is_told_once_when_its_watcher_is_killed(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url)
    watched.wait_for_command()
    command = psutil.Process(watched.command_pid)
    others = [child for child in psutil.Process(watched.process.pid).children() if child != command]
    assert len(others) == 1, "the process that asks"
    watched.process.kill()
    watched.process.wait(LIMIT_SECONDS)
    watched.wait_for_signals(["SIGTERM"])
    watched.allow_end()
    _, alive = psutil.wait_procs([command, *others], timeout=LIMIT_SECONDS)
    assert not alive
    assert watched.signals() == ["SIGTERM"]


def test_a_command_outlives_the_process_that_asks(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url)
    watched.wait_for_command()
    watched.wait_for_word("asking")
    for child in psutil.Process(watched.process.pid).children():
        if child.pid != watched.command_pid:
            child.kill()
    watched.wait_for_word("asking for notices has ended with status -9; the command runs on, without notices")
    assert watched.end() == 0
    assert watched.signals() == []


def test_nothing_is_left_behind(watch: Watch, aws: Metadata) -> None:
    watched = watch(aws.url)
    watched.wait_for_command()
    children = psutil.Process(watched.process.pid).children()
    assert watched.end() == 0
    assert [child for child in children if child.is_running()] == []


@pytest.mark.parametrize(
    ("code", "status"),
    [("pass", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_status_is_that_of_the_command(watch: Watch, aws: Metadata, code: str, status: int) -> None:
    watched = watch(aws.url, command=("--", sys.executable, "-c", code))
    assert watched.process.wait(LIMIT_SECONDS) == status


def test_a_command_that_does_not_exist(watch: Watch, aws: Metadata, tmp_path: Path) -> None:
    watched = watch(aws.url, command=("--", "no-such-launcher", "x"))
    assert watched.process.wait(LIMIT_SECONDS) == 127
    assert watched.said() == "launch.watch: no-such-launcher can't be started: No such file or directory\n"
    watched = watch(aws.url, command=("--", str(tmp_path)))
    assert watched.process.wait(LIMIT_SECONDS) == 126
    assert watched.said() == f"launch.watch: {tmp_path} can't be started: Permission denied\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either a command after -- or --pid PID"),
        (["--pid", "1", "--", "true"], "expected either a command after -- or --pid PID"),
        (["accelerate", "launch"], "what is accelerate launch? A command comes after --"),
        (["--metadata", "https://x", "--", "true"], "--metadata: https://x: expected http://HOST[:PORT]"),
        (["--every", "0", "--", "true"], "--every: 0: expected seconds, more than 0"),
        (["--every", "nan", "--", "true"], "--every: nan: expected seconds, more than 0"),
        (["--cloud", "moon", "--", "true"], "argument --cloud: invalid choice: 'moon'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_on_the_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert message in capsys.readouterr().err


@contextmanager
def running_launcher(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "command.py").write_text(OBEY)
    with subprocess.Popen([sys.executable, str(folder / "command.py"), str(folder)]) as launcher:
        wait_until((folder / "ready").exists, "does not start")
        try:
            yield launcher
        finally:
            launcher.kill()


def test_a_launcher_that_runs_already(watch: Watch, aws: Metadata, tmp_path: Path) -> None:
    with running_launcher(tmp_path) as launcher:
        watched = watch(aws.url, command=("--pid", str(launcher.pid)))
        watched.wait_for_word("asking")
        aws.give_notice()
        assert launcher.wait(LIMIT_SECONDS) == 0
        assert (tmp_path / "obeyed").read_text() == "SIGTERM"
        assert watched.process.wait(LIMIT_SECONDS) == 0
    assert watched.said().splitlines()[-1] == f"launch.watch: {ANNOUNCED['aws']}"


def test_a_launcher_that_ends_by_itself(watch: Watch, aws: Metadata, tmp_path: Path) -> None:
    with running_launcher(tmp_path) as launcher:
        watched = watch(aws.url, command=("--pid", str(launcher.pid)))
        watched.wait_for_word("asking")
        launcher.kill()
        launcher.wait(LIMIT_SECONDS)
        assert watched.process.wait(LIMIT_SECONDS) == 0
    assert "SIGTERM" not in watched.said()


def test_leaving_a_launcher_that_runs_already(watch: Watch, aws: Metadata, tmp_path: Path) -> None:
    with running_launcher(tmp_path) as launcher:
        watched = watch(aws.url, command=("--pid", str(launcher.pid)))
        watched.wait_for_word("asking")
        watched.process.send_signal(signal.SIGINT)
        assert watched.process.wait(LIMIT_SECONDS) == 130
        assert launcher.poll() is None
    assert f"process {launcher.pid} runs on, without notices" in watched.said()
    watched = watch(aws.url, command=("--pid", str(launcher.pid)))
    assert watched.process.wait(LIMIT_SECONDS) == 2
    assert watched.said() == f"launch.watch: --pid {launcher.pid}: No such process\n"


def test_a_notice_reaches_the_processes_of_accelerate(watch: Watch, aws: Metadata, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(OBEY)
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1"]
    config = ["--config_file", str(ROOT / "launch" / "accelerate" / "cpu.yaml")]
    watched = watch(aws.url, command=("--", *accelerate, *config, str(tmp_path / "train.py"), str(tmp_path)))
    watched.wait_for_command()
    aws.give_notice()
    assert watched.process.wait(LIMIT_SECONDS) == 1, "what the launcher says after SIGTERM"
    assert (tmp_path / "obeyed").read_text() == "SIGTERM"


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import launch.watch, launch.clouds, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    ours = {"launch", "launch.watch", "launch.notices", "launch.clouds", "launch.metadata"}
    loaded = {name for name in done.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert ours <= loaded
    assert {name for name in loaded if name.split(".")[0] in {"torch", "numpy", "dtrain", "shard_tools"}} == set()


def test_documented_commands() -> None:
    from tests.launch.test_configs import documented_commands

    found = [arguments for arguments in documented_commands("python") if arguments[:2] == ["-m", "launch.watch"]]
    assert len(found) >= 2
    for arguments in found:
        options = parse(arguments[2:])
        if options.command:
            program, *rest = options.command
            assert rest in documented_commands(program), "a launch line that the other tests know"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
