"""Memory for batches: used again when, and only when, nobody can see it any more."""

import gc
import threading

import torch
from torch import Tensor

from dtrain.data.buffers import BatchBuffers

SHAPES = [(4, 8, 8, 3), (4, 8, 8, 1)]


def address(tensors: list[Tensor]) -> int:
    return tensors[0].untyped_storage().data_ptr()


def test_tensors_of_one_batch_do_not_overlap() -> None:
    first, second = BatchBuffers(2).take(SHAPES)
    assert (first.shape, second.shape) == (torch.Size(SHAPES[0]), torch.Size(SHAPES[1]))
    first.fill_(1)
    second.fill_(2)
    assert set(first.flatten().tolist()) == {1}


def test_memory_comes_back_when_the_last_tensor_is_gone() -> None:
    buffers = BatchBuffers(2)
    taken = buffers.take(SHAPES)
    place = address(taken)
    assert address(buffers.take(SHAPES)) != place
    del taken
    assert place in {address(buffers.take(SHAPES)) for _ in range(2)}


def test_whoever_still_looks_at_a_batch_keeps_it() -> None:
    """A row, an array of NumPy's, a view of another shape: each alone holds the memory."""
    buffers = BatchBuffers(8)
    holders = [
        buffers.take(SHAPES)[0][2],
        buffers.take(SHAPES)[1].numpy()[1:],
        buffers.take(SHAPES)[0].view(-1)[5:9].view(2, 2),
        buffers.take(SHAPES)[0].permute(0, 3, 1, 2),
    ]
    for number, held in enumerate(holders):
        torch.as_tensor(held).fill_(number)
    gc.collect()
    for _ in range(8):
        for tensor in buffers.take(SHAPES):
            tensor.fill_(99)
    for number, held in enumerate(holders):
        assert set(torch.as_tensor(held).flatten().tolist()) == {number}


def test_few_free_pieces_are_kept() -> None:
    buffers = BatchBuffers(3)
    many = [buffers.take(SHAPES) for _ in range(20)]
    del many
    buffers.take(SHAPES)
    assert len(buffers._free) <= 3


def test_a_batch_that_the_garbage_collector_finds_comes_back_too() -> None:
    """Its finalizer may run within any allocation, also in one of the buffers' own."""
    buffers = BatchBuffers(4)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            ring: list[object] = [buffers.take(SHAPES)]
            ring.append(ring)
    finally:
        gc.set_threshold(*threshold)
    assert len(buffers._free) <= 200


def test_a_smaller_batch_fits_into_the_memory_of_a_larger_one() -> None:
    buffers = BatchBuffers(2)
    place = address(buffers.take(SHAPES))
    smaller = buffers.take([(2, 8, 8, 3)])
    assert address(smaller) == place
    del smaller
    assert address(buffers.take(SHAPES)) == place, "and is as large as before"


def test_threads_never_get_the_same_memory() -> None:
    buffers = BatchBuffers(4)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            (tensor,) = buffers.take([(64, 64)])
            tensor.fill_(number)
            if set(tensor.flatten().tolist()) != {number}:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
