"""Run a list of independent tasks in several processes, none of which outlives its parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import TypeVar

from shard_tools.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield `function(task)` for every task, in order of completion.

    At most 2 × `workers` tasks are in flight, so neither side holds the whole list. `function` and tasks are pickled.
    With one worker everything runs in this process. The first exception of a task is raised here and ends the rest.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: expected 1 or more")
    if workers == 1:
        yield from map(function, tasks)
        return
    remaining = iter(tasks)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as executor:

        def submit(count: int) -> set[Future[Result]]:
            chosen = list(islice(remaining, count))
            with _interrupts_held():
                return {executor.submit(function, task) for task in chosen}

        pending = submit(2 * workers)
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                pending |= submit(len(done))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed from outside (out of memory?); try fewer --workers, then run again"
            ) from None
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; processes started in it never see one, not even while they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """End when the parent is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
