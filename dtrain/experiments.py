"""`dtrain experiments`: several trainings one after the other, and one comparison of them. Trains nothing itself.

Each is a `dtrain train` of its own, and so is each evaluation, so that one that fails leaves the others alone.
"""

import json
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dtrain.experiment_set import Experiment, choose, common_size, find_experiments
from dtrain.report import write_report
from dtrain.report.charts import comparison_charts
from dtrain.report.comparison import comparison_markdown, read_runs
from dtrain.report.words import count, duration
from dtrain.run_folder import RunFolder
from dtrain.sizes import check_judge_at
from dtrain.stop_request import StopRequest
from dtrain.subordinate import run_command
from shard_tools.atomic import write_atomically
from shard_tools.errors import UserError

CURVES = "curves"
"""The folder of the pictures in comparison.md."""


def run_experiments(
    places: Sequence[Path],
    out: Path,
    *,
    only: Sequence[str] = (),
    judge_at: int | None = None,
    launch: str | None = None,
    overrides: Sequence[str] = (),
    request: StopRequest | None = None,
) -> None:
    """Train and evaluate what is not yet, then write OUT/comparison.html and OUT/comparison.md with OUT/curves.

    `places`: files and folders of configurations (`dtrain.experiment_set`); `only` these names are trained, but all
    that are trained are compared. Each network sees images of its own last size, and all are judged at one,
    `judge_at`: by default the largest that any stage of any of them has. `launch` is a command that a module's name and
    arguments can follow, such as "accelerate launch … -m". A signal stops the training that runs, which saves. Raises
    UserError for what is wrong before anything begins, and in the end if any experiment failed; SystemExit after a
    signal.
    """
    request = request or StopRequest()
    check_judge_at(judge_at)
    experiments = find_experiments(places, out, overrides)
    chosen = choose(experiments, only)
    program = [*_launcher(launch), "dtrain"]
    size = judge_at or common_size(experiments)
    compared = [experiment for experiment in experiments if experiment in chosen or _is_trained(experiment)]
    waiting = [experiment for experiment in compared if not _is_finished(experiment, size)]
    for experiment in chosen:
        if experiment not in waiting:
            _say(f"{experiment.name}: finished before")
    failures = {}
    began = time.monotonic()
    for done, experiment in enumerate(waiting):
        place = f"[{done + 1}/{len(waiting)}] {experiment.name}"
        _say(f"{place}{_time_left(time.monotonic() - began, done, len(waiting))}")
        failure = _run(experiment, program, size, request)
        if request.reason:
            _say(f"{place}: stopped by {request.reason}; the same command goes on from there")
            raise SystemExit(128 + signal.Signals.__members__.get(request.reason, signal.SIGTERM))
        if failure:
            failures[experiment.name] = failure
            _say(f"{place}: FAILED: {failure}")
    finished = [experiment.config.run for experiment in compared if _is_finished(experiment, size)]
    if finished:
        for path in write_comparison(finished, out):
            print(path, flush=True)
    if failures:
        each = "\n".join(f"  {name}: {failure}" for name, failure in failures.items())
        raise UserError(f"{len(failures)} of {len(compared)} experiments failed; the same command tries again:\n{each}")


def write_comparison(runs: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Write OUT/comparison.html, and OUT/comparison.md with pictures in OUT/curves, of run folders; return the two.

    Raises UserError for a folder that is no run, and if OUT can't be written.
    """
    records = read_runs(runs)
    page, text = out / "comparison.html", out / "comparison.md"
    write_report(runs, page)
    lines = [f"# Comparison of {count(len(runs), 'run')}", "", comparison_markdown(records)]
    try:
        (out / CURVES).mkdir(exist_ok=True)
        for group in comparison_charts(records):
            lines += [f"### {group.title}", ""]
            for chart in group.charts:
                name = re.sub(r"\W+", "-", chart.title.lower()).strip("-") + ".svg"
                write_atomically(out / CURVES / name, str(chart.svg))
                lines += [f"![{chart.title}]({CURVES}/{name})", ""]
        write_atomically(text, "\n".join(lines))
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; the runs are whole, and the same command compares them") from None
    return page, text


def _run(experiment: Experiment, program: Sequence[str], size: int, request: StopRequest) -> str | None:
    """Train and evaluate; what went wrong, or None, also after a signal."""
    run = RunFolder(experiment.config.run)
    if not _is_trained(experiment):
        status = run_command([*program, "train", str(experiment.file), *experiment.overrides], request)
        if request.reason:
            return None
        state = run.read_status()
        if status or state.get("state") != "done":
            told = f" ({state.get('state')}: {state.get('reason')})" if state else ""
            again = (
                f"; if it was changed on purpose: another --out, or remove {run.path}" if run.config.is_file() else ""
            )
            return f"training: exit status {status}{told}{again}"
    if not _is_evaluated(experiment, size):
        judge = [*program, "evaluate", str(run.path), "--judge-at", str(size)]
        status = run_command(judge, request, quiet=True)
        if status and not request.reason:
            return f"evaluation: exit status {status}"
        if not request.reason and not _is_evaluated(experiment, size):
            return f"evaluation: not of the last checkpoint, which may be damaged; see {run.evaluation}"
    return None


def _is_finished(experiment: Experiment, size: int) -> bool:
    return _is_trained(experiment) and _is_evaluated(experiment, size)


def _is_trained(experiment: Experiment) -> bool:
    """Whether the run is done with this very configuration and data; if not, `dtrain train` says what to do."""
    run, wanted = RunFolder(experiment.config.run), experiment.config
    try:
        if not run.config.is_file() or run.read_status().get("state") != "done":
            return False
        had = run.load_config()
    except UserError:  # of another version, maybe
        return False
    return had.identity() == wanted.identity() and had.data.manifest == wanted.data.manifest


def _is_evaluated(experiment: Experiment, size: int) -> bool:
    """Whether evaluation.json says what it should: of the last checkpoint, on the test split, judged at that size."""
    run, config = RunFolder(experiment.config.run), experiment.config
    wanted = {
        "checkpoint": f"step-{run.read_status().get('global_step', 0):08d}",
        "split": config.data.test_split,
        "size": size,
        "input_size": config.stages[-1].size,
    }
    try:
        found = json.loads(run.evaluation.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items())


def _launcher(launch: str | None) -> list[str]:
    """The words before a module's name."""
    if launch is None:
        return [sys.executable, "-m"]
    words = shlex.split(launch)
    program = words and (shutil.which(words[0]) or shutil.which(words[0], path=Path(sys.executable).parent))
    if not program:
        raise UserError(f"--launch: no such program in {launch!r}; expected such as 'accelerate launch … -m'")
    return [program, *words[1:]]


def _time_left(seconds: float, done: int, total: int) -> str:
    """The end of a line; empty as long as there is nothing to go by. All are taken to last as long as those before."""
    return f", about {duration(seconds / done * (total - done))} left" if done else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
