"""Copies of tensors on the host: as they were, whatever became of the copy before."""

import pytest
import torch

from dtrain.snapshot import Snapshot

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_that_nobody_fetched_leaves_nothing_behind(device: str) -> None:
    """As when there is no room for metrics.jsonl; then the optimizer's state is reset, and has no tensors."""
    snapshot = Snapshot()
    weight, moment = torch.ones(3, device=device), torch.ones(2, device=device)
    snapshot.take({"weight": weight, "moment": moment})
    weight.fill_(2)
    snapshot.take({"weight": weight})
    weight.fill_(3)
    (copy,) = snapshot.on_host().items()
    assert (copy[0], copy[1].tolist(), copy[1].device.type) == ("weight", [2, 2, 2], "cpu")
    snapshot.take({"weight": weight})
    snapshot.take({})
    assert snapshot.on_host() == {}
