"""Where the time of a step goes: each loss is really alone, and no disk is so full that it ends a run."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dtrain.config import Config, LossConfig
from dtrain.model import Prediction
from dtrain.plan import StagePlan, plan_run
from dtrain.profiler import LOSS_REPEATS, TIMED_STEPS, TRACED_STEPS, WARM_STEPS, Profiler

from .conftest import fill


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch is asked to compute, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name().removeprefix("aten::").partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def stage(make_config: Callable[..., Config]) -> StagePlan:
    return plan_run(make_config(), [30], rank=0, world_size=1).stages[0]


def measured(profiler: Profiler, stage: StagePlan) -> Profiler:
    """All steps of a stage that are to be measured, each of losses alone."""
    plane, image = torch.rand(2, 1, 16, 16), torch.rand(2, 3, 16, 16)
    profiler.stage_begins(stage)
    for _ in range(WARM_STEPS + TIMED_STEPS + TRACED_STEPS):
        with profiler.step(), profiler.phase("losses"):
            profiler.each_loss(Prediction(plane, plane), depth=plane, mask=plane, image=image)
    return profiler


def test_each_loss_is_computed_alone(tmp_path: Path, stage: StagePlan) -> None:
    loss = LossConfig(depth={"mse": 1, "ssim": 1}, mask={"bce": 1, "dice": 1})
    profiler = Profiler(tmp_path / "profile", torch.device("cpu"), loss)
    with Operations() as operations:
        measured(profiler, stage)
    counts = operations.counts
    assert counts["mse_loss"] == counts["mse_loss_backward"] == LOSS_REPEATS
    assert counts["binary_cross_entropy_with_logits"] == LOSS_REPEATS
    assert counts["sigmoid_backward"] == LOSS_REPEATS, "of the Dice loss and of no other"
    profiler.write()
    found = json.loads((tmp_path / "profile/stage-0.json").read_text())
    assert list(found["loss_seconds"]) == ["depth mse", "depth ssim", "mask bce", "mask dice"]
    assert found["steps"] == TIMED_STEPS


def test_files_are_whole_under_their_names(tmp_path: Path, stage: StagePlan) -> None:
    profiler = measured(Profiler(tmp_path / "profile", torch.device("cpu"), LossConfig()), stage)
    assert profiler.complete
    assert "WARNING" not in profiler.write()
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["stage-0.json", "trace-stage-0.json.gz"]
    assert json.loads(gzip.decompress((tmp_path / "profile/trace-stage-0.json.gz").read_bytes()))["traceEvents"]
    assert profiler.write() == "", "there is nothing more"


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, stage: StagePlan) -> None:
    (tmp_path / "profile").write_text("in the way")
    table = measured(Profiler(tmp_path / "profile", torch.device("cpu"), LossConfig()), stage).write()
    assert "each loss alone" in table
    assert table.endswith("WARNING: not all files of this could be written: File exists")


def test_a_full_disk_is_a_warning(small_disk: Path, stage: StagePlan) -> None:
    (small_disk / "profile").mkdir()
    profiler = measured(Profiler(small_disk / "profile", torch.device("cpu"), LossConfig()), stage)
    fill(small_disk)
    assert profiler.write().endswith("WARNING: not all files of this could be written: No space left on device")
    assert list((small_disk / "profile").iterdir()) == []
