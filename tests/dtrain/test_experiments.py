"""Which experiments a command names, how a command is run beside this one, and what the shipped experiments ask."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dtrain.cli import main
from dtrain.config import differences, load_config
from dtrain.experiment_set import choose, common_size, find_experiments
from dtrain.stop_request import SIGNALS, StopRequest
from dtrain.subordinate import run_command
from shard_tools.errors import UserError

SHIPPED = Path(__file__).parents[2] / "configs/experiments"
BASE = "run: r\ndata: {manifest: shards}\nstages: [{size: 32, batch: 4}]\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files into a folder: name and text."""

    def into(folder: str = "set", **texts: str) -> Path:
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            (tmp_path / folder / f"{name}.yaml").write_text(text)
        return tmp_path / folder

    return into


class TestFind:
    def test_a_folder_without_what_the_others_share(self, write: Write) -> None:
        folder = write(base=BASE, b="extends: base.yaml\nseed: 1\n", a="extends: b.yaml\nseed: 2\n")
        found = find_experiments([folder], Path("out"))
        assert [(each.name, each.config.seed, each.config.run) for each in found] == [
            ("a", 2, Path("out/a")),
            ("b", 1, Path("out/b")),
        ]

    def test_a_file_that_is_named_whoever_extends_it(self, write: Write) -> None:
        folder = write(base=BASE, a="extends: base.yaml\n")
        assert [each.name for each in find_experiments([folder / "base.yaml", folder], Path("out"))] == ["base", "a"]

    def test_a_folder_of_one_file_that_nothing_extends(self, write: Write) -> None:
        assert [each.name for each in find_experiments([write(alone=BASE)], Path("out"))] == ["alone"]

    def test_keys_for_all(self, write: Write) -> None:
        found = find_experiments([write(a=BASE, b=BASE)], Path("out"), ["--data.manifest", "other", "--seed=5"])
        assert {(each.config.data.manifest, each.config.seed) for each in found} == {("other", 5)}

    def test_only_some_in_their_own_order(self, write: Write) -> None:
        found = find_experiments([write(a=BASE, b=BASE, c=BASE)], Path("out"))
        assert [each.name for each in choose(found, ["c", "a"])] == ["a", "c"]
        assert choose(found, []) == found

    def test_the_common_size_is_the_largest_of_any_stage(self, write: Write) -> None:
        stages = "stages: [{{size: {}, batch: 4}}, {{size: 32, batch: 4{}}}]\n"
        start = "run: r\ndata: {manifest: shards}\n"
        large, loss = start + stages.format(64, ""), start + stages.format(16, ", loss_size: 96")
        assert common_size(find_experiments([write(a=BASE, b=large)], Path("out"))) == 64
        assert common_size(find_experiments([write("other", a=large, b=loss)], Path("out"))) == 96

    def test_an_unknown_name_is_answered_with_the_one_that_was_meant(self, write: Write) -> None:
        found = find_experiments([write(gradient=BASE, ssim=BASE)], Path("out"))
        with pytest.raises(UserError, match=r"--only: no experiment is called 'gradent'; did you mean gradient\?"):
            choose(found, ["gradent"])

    def test_two_of_one_name(self, write: Write) -> None:
        places = [write("one", a=BASE), write("two", a=BASE)]
        with pytest.raises(UserError, match=r"two/a\.yaml: .*one/a\.yaml has the same name"):
            find_experiments(places, Path("out"))

    @pytest.mark.parametrize("option", ["--run", "--run=elsewhere"])
    def test_no_run_folder_for_all(self, write: Write, option: str) -> None:
        with pytest.raises(UserError, match="--run: experiments have folders of their own"):
            find_experiments([write(a=BASE)], Path("out"), [option])

    def test_a_folder_without_configurations(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no configuration"):
            find_experiments([tmp_path], Path("out"))

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"none\.yaml: no such file"):
            find_experiments([tmp_path / "none.yaml"], Path("out"))


def test_a_mistake_in_any_of_them_is_told_before_the_first_begins(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(a=BASE, b=BASE + "sede: 1\n")
    assert main(["experiments", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "b.yaml: not a valid configuration" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_launcher_that_is_not_there(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments", str(write(a=BASE)), "--out", str(tmp_path / "out"), "--launch", "akcelerate -m"]) == 1
    assert "--launch: no such program in 'akcelerate -m'" in capsys.readouterr().err


def test_a_size_that_nothing_can_be_judged_at(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments", str(write(a=BASE)), "--out", str(tmp_path / "out"), "--judge-at", "4"]) == 1
    assert "--judge-at 4: expected a side of 8 pixels or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class TestShipped:
    def test_each_is_another_experiment_and_says_what_it_asks(self) -> None:
        found = find_experiments([SHIPPED], Path("out"))
        identities = [each.config.identity() for each in found]
        assert len(found) == len([*SHIPPED.glob("*.yaml")]) - 1
        assert all(identities.count(identity) == 1 for identity in identities)
        assert all(each.file.read_text().startswith("# ") for each in found)

    @pytest.mark.parametrize(
        ("name", "scale", "depth", "mask"),
        [
            ("losses-10d-m", 1, {"mse": 10}, {"mse": 1}),
            ("losses-2d-m", 1, {"mse": 2}, {"mse": 1}),
            ("losses-k-d-m", 10, {"mse": 1}, {"mse": 1}),
            ("losses-k-d-m-ssim", 10, {"mse": 1, "ssim": 1}, {"mse": 1}),
            ("losses-k-d-bce", 10, {"mse": 1}, {"bce": 1}),
            ("losses-k-d-bce-ssim", 10, {"mse": 1, "ssim": 1}, {"bce": 1}),
            ("losses-k-d-bce-gradient", 10, {"mse": 1, "gradient": 1}, {"bce": 1}),
            ("losses-k-20", 20, {"mse": 1}, {"bce": 1}),
            ("losses-k-30", 30, {"mse": 1}, {"bce": 1}),
            ("losses-k-70", 70, {"mse": 1}, {"bce": 1}),
        ],
    )
    def test_losses_are_those_that_the_names_say(
        self, name: str, scale: float, depth: dict[str, float], mask: dict[str, float]
    ) -> None:
        loss = load_config(SHIPPED / f"{name}.yaml").loss
        assert (loss.scale, loss.depth, loss.mask) == (scale, depth, mask)

    @pytest.mark.parametrize(
        ("name", "baseline", "key", "size"),
        [
            ("curriculum-loss-size-64", "losses-k-d-bce", "stages.0.loss_size", 32),
            ("curriculum-loss-size-128", "curriculum-larger-images", "stages.1.loss_size", 64),
        ],
    )
    def test_a_larger_loss_size_differs_in_nothing_else_from_what_it_is_compared_with(
        self, name: str, baseline: str, key: str, size: int
    ) -> None:
        config, other = (load_config(SHIPPED / f"{each}.yaml") for each in (name, baseline))
        assert set(differences(other.identity(), config.identity())) == {key}
        assert config.stages[-1].size == size
        assert config.stages[-1].loss_size == 2 * size

    def test_factors_by_sgd_multiply_the_whole_step(self) -> None:
        few, many = (load_config(SHIPPED / f"losses-k-{factor}-sgd.yaml") for factor in (10, 70))
        assert set(differences(few.identity(), many.identity())) == {"loss.scale"}
        assert few.optimizer.weight_decay == 0

    def test_what_is_compared_sees_as_many_samples(self) -> None:
        found = find_experiments([SHIPPED], Path("out"))
        seen = {sum((stage.epochs or 1) * (stage.samples or 0) for stage in each.config.stages) for each in found}
        assert len(seen) == 1
        assert 0 not in seen


class TestCommandOfItsOwn:
    """Real processes, and real signals to this one."""

    @pytest.fixture
    def request_to_stop(self) -> Iterator[StopRequest]:
        before = {number: signal.getsignal(number) for number in SIGNALS}
        yield StopRequest()
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)

    def test_its_exit_status(self, request_to_stop: StopRequest) -> None:
        assert run_command([sys.executable, "-c", "raise SystemExit(3)"], request_to_stop) == 3

    def test_a_signal_is_passed_on_once_and_waited_for(self, request_to_stop: StopRequest, tmp_path: Path) -> None:
        code = (
            "import signal, sys, time\n"
            "def stop(number, frame):\n"
            "    file.write(f'{number} ')\n"
            "    time.sleep(0.5)\n"
            "    file.write('left')\n"
            "    file.close()\n"
            "    sys.exit(0)\n"
            "file = open(sys.argv[1], 'w')\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            "open(sys.argv[1] + '.ready', 'w').close()\n"
            "time.sleep(60)\n"
        )
        noted = tmp_path / "noted"
        threading.Thread(target=self._signal_when, args=(noted.with_suffix(".ready"), signal.SIGINT)).start()
        assert run_command([sys.executable, "-c", code, str(noted)], request_to_stop) == 0
        assert noted.read_text() == f"{signal.SIGTERM:d} left"

    def test_one_that_does_not_leave_is_killed_with_all_it_started(
        self, request_to_stop: StopRequest, tmp_path: Path
    ) -> None:
        code = (
            "import signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "open(sys.argv[1], 'w').write(str(child.pid))\n"
            "open(sys.argv[1] + '.ready', 'w').close()\n"
            "time.sleep(60)\n"
        )
        pid = tmp_path / "pid"
        threading.Thread(target=self._signal_when, args=(pid.with_suffix(".ready"), signal.SIGTERM)).start()
        command = [sys.executable, "-c", code, str(pid)]
        assert run_command(command, request_to_stop, leave_seconds=0.3) == -signal.SIGKILL
        assert not psutil.pid_exists(int(pid.read_text())) or self._is_gone(int(pid.read_text()))

    def test_it_is_told_to_stop_when_this_one_is_killed(self, tmp_path: Path) -> None:
        code = (
            "import signal, sys, time\n"
            "def stop(number, frame):\n"
            "    open(sys.argv[1] + '.told', 'w').close()\n"
            "    sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            "open(sys.argv[1] + '.ready', 'w').close()\n"
            "time.sleep(60)\n"
        )
        starts_it = (
            "import sys\n"
            "from dtrain.stop_request import StopRequest\n"
            "from dtrain.subordinate import run_command\n"
            "run_command([sys.executable, '-c', *sys.argv[1:]], StopRequest())\n"
        )
        noted = tmp_path / "noted"
        parent = subprocess.Popen([sys.executable, "-c", starts_it, code, str(noted)])
        self._wait_for(noted.with_suffix(".ready"))
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        parent.wait()
        self._wait_for(noted.with_suffix(".told"))
        assert noted.with_suffix(".told").exists()
        assert self._is_gone(child.pid)

    def _signal_when(self, ready: Path, number: signal.Signals) -> None:
        self._wait_for(ready)
        os.kill(os.getpid(), number)

    @staticmethod
    def _wait_for(path: Path) -> None:
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    @staticmethod
    def _is_gone(pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            return process.status() == psutil.STATUS_ZOMBIE or not psutil.wait_procs([process], timeout=20)[1]
        except psutil.NoSuchProcess:
            return True
