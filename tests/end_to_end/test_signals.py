"""One run that is told to stop again and again, each time at another bad moment, ends like the run that was not."""

import signal
import time
from pathlib import Path

from dtrain.data.order import EpochOrder, rows_of_rank
from shard_tools.manifest import read_manifest

from ..servers import needs_nginx, nginx
from .conftest import BATCH, MAX_LANES, STEPS, TOTAL_STEPS, Launched, Run
from .lean import GRACE_SECONDS, Lean, all_gone, checkpoint_of, curve, trainers, wait_until

FIRST_EVALUATION = 2 * STEPS
LEAVE_SECONDS = 10
"""So long after a signal processes that were in the middle of steps have saved, and say so, on a busy machine too.

A start, and a session's first evaluation, import and begin things, which takes such a machine longer."""


@needs_nginx
def test_it_loses_nothing(run: Run, of_few_lanes: Run, tmp_path: Path) -> None:
    run = Lean(run.folder, run.shards, of_few_lanes)

    before_the_first_step = run.launch()
    wait_until((run.folder / "config.yaml").exists, before_the_first_step)
    before_the_first_step.process.send_signal(signal.SIGTERM)
    assert stopped(run, before_the_first_step) == "SIGTERM"
    assert run.last_step() == 0
    assert not (run.folder / "checkpoints").exists()

    twice_during_a_save = run.launch()
    run.wait_for_step(twice_during_a_save, 1)
    processes = trainers(twice_during_a_save)
    wait_until(lambda: any(run.folder.glob("checkpoints/.step-*.partial")), twice_during_a_save)
    asked = time.time()
    for process in processes * 2:
        process.send_signal(signal.SIGTERM)
    assert all_gone(processes)
    assert stopped(run, twice_during_a_save, asked) == "SIGTERM"
    assert 7 <= run.last_step() < FIRST_EVALUATION

    during_an_evaluation = run.launch()
    run.wait_for_step(during_an_evaluation, run.last_step() + 1)
    processes = trainers(during_an_evaluation)
    run.wait_for_step(during_an_evaluation, FIRST_EVALUATION)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    assert all_gone(processes)
    assert stopped(run, during_an_evaluation) == "SIGUSR1"
    assert run.last_step() == FIRST_EVALUATION
    assert not run.events("evaluate")

    slow, last_possible = last_shard_of_the_second_process(run.shards, stage=1, epoch=0)
    with nginx(run.shards, tmp_path / "server", f"location = /{slow} {{ limit_rate 1k; }}") as server:
        not_yet = ("--checkpoint.every", "1000 steps")
        slowly = ("--data.manifest", server.url, "--data.cache_dir", str(tmp_path / "cache"))
        one_of_two_nodes_while_it_waits_for_data = run.launch_ranks(not_yet, (*not_yet, *slowly))
        run.wait_for_step(one_of_two_nodes_while_it_waits_for_data[0], FIRST_EVALUATION + last_possible)
        time.sleep(1)
        asked = time.time()
        one_of_two_nodes_while_it_waits_for_data[1].process.send_signal(signal.SIGTERM)
        for node in one_of_two_nodes_while_it_waits_for_data:
            assert node.process.wait(GRACE_SECONDS) == 0, node.output
    assert stopped(run, asked=asked) == "a signal to another process"
    assert run.last_step() == FIRST_EVALUATION + last_possible > FIRST_EVALUATION
    statistics = checkpoint_of(run, run.last_step()).weights
    counted = {int(value) for name, value in statistics.items() if name.endswith("num_batches_tracked")}
    assert counted == {run.last_step()}, "the step that was dropped has left nothing in BatchNorm's statistics"

    while_another_is_slow = run.launch()
    run.wait_for_step(while_another_is_slow, run.last_step() + 4)
    processes = trainers(while_another_is_slow)
    processes[0].suspend()
    processes[1].send_signal(signal.SIGUSR1)
    time.sleep(2.5)
    asked = time.time()
    processes[0].resume()
    assert all_gone(processes)
    assert stopped(run, while_another_is_slow, asked) == "a signal to another process"

    run.train()
    resumes = run.events("resume")
    assert len(resumes) == 4
    assert not any(resume["repeated_steps"] for resume in resumes)
    assert len(run.events("evaluate")) == 3
    assert run.final() == of_few_lanes.final()
    for name in ("train/loss", "test/mask_iou"):
        assert curve(run, name) == curve(of_few_lanes, name)


def stopped(run: Run, launched: Launched | None = None, asked: float | None = None) -> str:
    """Why the run was preempted, with a checkpoint of the very step that was logged last, if there was one.

    `asked` is when all of its processes could know of it.
    """
    if launched is not None:
        launched.finish()
    if asked is not None:
        assert run.events("preempted")[-1]["time"] - asked < LEAVE_SECONDS
    status = run.status()
    assert status["state"] == "preempted"
    assert status["global_step"] == run.last_step() < TOTAL_STEPS
    if run.last_step():
        assert run.checkpoints()[-1] == f"step-{run.last_step():08d}"
        assert not [name for name in run.checkpoints() if name.startswith(".")]
    return str(status["reason"])


def last_shard_of_the_second_process(shards: Path, *, stage: int, epoch: int) -> tuple[str, int]:
    """The name of the last shard that process 1 of 2 comes to in an epoch, and after how many steps."""
    split = read_manifest(shards).split("train").shards
    lengths = [shard.samples for shard in split]
    order = EpochOrder(lengths, seed=0, stage=stage, epoch=epoch, global_batch=BATCH, max_lanes=MAX_LANES)
    rows = rows_of_rank(BATCH, 1, 2)
    first_needed: dict[int, int] = {}
    for step in range(STEPS):
        for shard in order.batch(step, rows).shard:
            first_needed.setdefault(int(shard), step)
    shard, step = list(first_needed.items())[-1]
    return split[shard].file, step
