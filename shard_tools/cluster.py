"""Run a list of independent tasks on a Dask cluster that somebody else started. Starts and stops nothing there."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from shard_tools.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

CONNECT_SECONDS = 30
WITHOUT_WORKERS_SECONDS = 300
_LOOK_EVERY_SECONDS = 10


def run_on_dask(function: Callable[[Task], Result], tasks: Iterable[Task], address: str) -> Iterator[Result]:
    """Yield `function(task)` for every task, in order of completion, like `workers.run_tasks`.

    `address` is that of a scheduler ("tcp://host:8786"); its workers need this package and the same paths or URLs. At
    most two tasks a worker thread are in flight. A task whose worker is lost is run again by Dask on another one.
    Raises UserError where there is no cluster, or for WITHOUT_WORKERS_SECONDS no worker.
    """
    try:
        from distributed import wait
    except ImportError:
        raise UserError("--dask: needs the package distributed; pip install 'dtrain[cluster]'") from None
    with _connect(address) as client:
        remaining = iter(tasks)
        pending: set[Any] = set()
        seen_worker = time.monotonic()
        while True:
            threads = sum(client.nthreads().values())
            if threads:
                seen_worker = time.monotonic()
            elif time.monotonic() - seen_worker > WITHOUT_WORKERS_SECONDS:
                raise UserError(
                    f"--dask {address}: no worker for {WITHOUT_WORKERS_SECONDS} s; start `dask worker {address}` "
                    "and run the same command again"
                )
            for task in islice(remaining, max(2 * threads - len(pending), 0)):
                pending.add(client.submit(function, task, pure=False))
            if not pending:
                if threads:
                    return
                time.sleep(1)
                continue
            try:
                done, pending = wait(pending, timeout=_LOOK_EVERY_SECONDS, return_when="FIRST_COMPLETED")
            except TimeoutError:
                continue
            for future in done:
                yield _result(future)


def _connect(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        reason = str(error)
    gc.collect()  # ends the client that failed here, not in the next one's new thread, where its lock is never released
    raise UserError(
        f"--dask {address}: no Dask scheduler answers there ({reason}); expected an address like tcp://host:8786, "
        "as `dask scheduler` prints it"
    )


def _result(future: Any) -> Any:
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        raise UserError(
            f"--dask: {error.allowed_failures + 1} workers died on one task (out of memory?); look at their logs, "
            "then run the same command again"
        ) from None
