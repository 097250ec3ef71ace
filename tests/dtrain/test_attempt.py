"""Processes of one attempt meet each other, whatever those of earlier ones left in the store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore

from dtrain.attempt import agree_on_attempt

PATIENCE = timedelta(seconds=20)
PROCESSES = 3


def attempt(store: HashStore, ranks: list[int]) -> list[str]:
    """What the processes agree on that start in this order."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        agreed = [pool.submit(agree_on_attempt, store, rank, PROCESSES, PATIENCE) for rank in ranks]
        return [future.result() for future in agreed]


def test_each_attempt_is_one_of_its_own() -> None:
    store = HashStore()
    names = [attempt(store, order) for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1])]
    assert all(len(set(name)) == 1 for name in names)
    assert len({name for (name, *_) in names}) == len(names)


@pytest.mark.parametrize("killed", [0, 1])
def test_an_attempt_that_was_killed_before_all_had_met_does_not_matter(killed: int) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises((TimeoutError, RuntimeError)):
        agree_on_attempt(store, killed, PROCESSES, timedelta(seconds=0.2))
    store.set_timeout(PATIENCE)
    assert len(set(attempt(store, [1, 2, 0]))) == 1


def test_one_process_alone_waits_for_nobody() -> None:
    assert agree_on_attempt(HashStore(), 0, 1, timedelta(0))


def test_processes_that_do_not_come_are_named() -> None:
    store = HashStore()
    with pytest.raises(TimeoutError, match="processes 1, 2 did not start"):
        agree_on_attempt(store, 0, PROCESSES, timedelta(seconds=0.1))
