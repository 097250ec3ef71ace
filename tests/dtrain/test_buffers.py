"""Memory for batches: used again when, and only when, nobody can see it any more."""

import gc
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain.data.buffers import BatchBuffers
from dtrain.data.rows import CHANNELS, bytes_of, slots_in
from dtrain.data.workers import BatchMemory

SIZE = 1000


@pytest.fixture(params=[True, False], ids=["shared", "own"])
def shared(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def make(most: int, shared: bool) -> BatchBuffers:
    return BatchBuffers(most, partial(BatchMemory, shared=shared))


def take(buffers: BatchBuffers, size: int = SIZE) -> Tensor:
    return buffers.take(size).tensor


def test_slots_of_one_batch_do_not_overlap() -> None:
    shape = (4, 8, 6)
    memory = np.zeros(bytes_of(shape) + 5, dtype=np.uint8)
    for number, slots in enumerate(slots_in(memory, shape), start=1):
        assert slots.shape == (*shape, CHANNELS[number - 1])
        assert not slots.any()
        slots[...] = number
    assert (memory != 0).sum() == bytes_of(shape) == 4 * 8 * 6 * 8


def test_memory_comes_back_when_the_last_tensor_is_gone(shared: bool) -> None:
    buffers = make(2, shared)
    taken = take(buffers)
    place = taken.data_ptr()
    assert take(buffers).data_ptr() != place
    del taken
    assert place in {tensor.data_ptr() for tensor in (take(buffers), take(buffers))}


def test_whoever_still_looks_at_a_batch_keeps_it(shared: bool) -> None:
    """A part, an array of NumPy's, a view of another shape: each alone holds the memory."""
    buffers = make(8, shared)
    holders = [
        take(buffers)[20:30],
        take(buffers).numpy()[1:],
        take(buffers)[5:9].view(2, 2),
        take(buffers).view(10, 100).permute(1, 0),
        torch.from_numpy(take(buffers).numpy()[10:20].reshape(2, 5)),
    ]
    for number, held in enumerate(holders):
        torch.as_tensor(held).fill_(number)
    gc.collect()
    for _ in range(8):
        take(buffers).fill_(99)
    for number, held in enumerate(holders):
        assert set(torch.as_tensor(held).flatten().tolist()) == {number}


def test_few_free_pieces_are_kept(shared: bool) -> None:
    buffers = make(3, shared)
    many = [take(buffers) for _ in range(20)]
    del many
    take(buffers)
    assert len(buffers._free) <= 3


def test_a_batch_that_the_garbage_collector_finds_comes_back_too() -> None:
    """Its finalizer may run within any allocation, also in one of the buffers' own."""
    buffers = make(4, False)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            ring: list[object] = [take(buffers)]
            ring.append(ring)
    finally:
        gc.set_threshold(*threshold)
    assert len(buffers._free) <= 4


def test_a_smaller_batch_fits_into_the_memory_of_a_larger_one(shared: bool) -> None:
    buffers = make(2, shared)
    place = take(buffers).data_ptr()
    smaller = take(buffers, SIZE // 2)
    assert smaller.data_ptr() == place
    assert len(smaller) == SIZE // 2
    del smaller
    assert take(buffers).data_ptr() == place, "and is as large as before"


def test_threads_never_get_the_same_memory() -> None:
    buffers = make(4, False)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            tensor = take(buffers, 4096)
            tensor.fill_(number)
            if set(tensor.tolist()) != {number}:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
