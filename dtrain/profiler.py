"""Where the time of a step goes: phases, each loss alone, and a trace of some steps. Changes nothing that is computed.

Waits for the device around every phase while it measures, so the steps measured are slower than the others.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dtrain.config import LossConfig
from dtrain.loss_names import figure_name
from dtrain.losses import Criterion
from dtrain.model import Prediction
from dtrain.plan import StagePlan
from shard_tools.atomic import write_atomically

WARM_STEPS, TIMED_STEPS, TRACED_STEPS = 5, 20, 3
LOSS_REPEATS = 5

PHASES = ("waiting for data", "to the device", "network", "losses", "backward", "agreement", "update")
"""In their order; backward has the exchange of gradients between processes in it."""
REST = "rest"


@dataclass
class _Measured:
    """Of one stage, in seconds: each step, the sum of each phase, each loss alone."""

    steps: list[float] = field(default_factory=list)
    phases: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    losses: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Profiler:
    """Measures the first steps of each stage: some to warm up, some by the clock, some for the trace."""

    def __init__(self, folder: Path | None, device: torch.device, loss: LossConfig) -> None:
        """Results go to `folder`; None: measures nothing, and costs nothing."""
        self._folder = folder
        self._device = device
        self._criterion = Criterion(loss)
        self._terms = {
            **{f"depth {name}": figure_name("depth", name) for name in loss.depth},
            **{f"mask {name}": figure_name("mask", name) for name in loss.mask},
        }
        self._stage: StagePlan | None = None
        self._timing = False
        self._aside = 0.0
        self._tracer: torch.profiler.profile | None = None
        self._measured = _Measured()
        self._number = 0

    def stage_begins(self, stage: StagePlan) -> None:
        """Measure anew."""
        self._stage = stage
        self._measured = _Measured()
        self._number = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a whole step."""
        number = self._number
        self._number += 1
        if self._folder is None or not WARM_STEPS <= number < WARM_STEPS + TIMED_STEPS + TRACED_STEPS:
            yield
        elif number < WARM_STEPS + TIMED_STEPS:
            self._timing = True
            began, self._aside = self._now(), 0.0
            yield
            self._measured.steps.append(self._now() - began - self._aside)
            self._timing = False
        else:
            if self._tracer is None:
                self._tracer = torch.profiler.profile()
                self._tracer.start()
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around one of `PHASES` within a step."""
        if not self._timing:
            yield
            return
        began, aside = self._now(), self._aside
        yield
        self._measured.phases[name] += self._now() - began - (self._aside - aside)

    def each_loss(self, prediction: Prediction, *, depth: Tensor, mask: Tensor, image: Tensor) -> None:
        """Time every term alone, forward and backward to the prediction; arguments as those of `Criterion`."""
        if not self._timing or len(self._measured.steps) >= LOSS_REPEATS:
            return
        began = self._now()
        for name, term in self._terms.items():
            leaf = Prediction(*(plane.detach().clone().requires_grad_() for plane in prediction))
            start = self._now()
            torch.autograd.backward(self._criterion.term(term, leaf, depth=depth, mask=mask, image=image))
            self._measured.losses[name].append(self._now() - start)
        self._aside += self._now() - began

    @property
    def complete(self) -> bool:
        """Whether all steps of this stage that are to be measured are, and `write` was not called yet."""
        return bool(self._measured.steps) and self._number >= WARM_STEPS + TIMED_STEPS + TRACED_STEPS

    def write(self) -> str:
        """Write what was measured of this stage; a table of it, or "" if there is nothing.

        The table ends with a warning where the files can't be written.
        """
        tracer, self._tracer = self._tracer, None
        measured, self._measured = self._measured, _Measured()
        steps = measured.steps
        if self._folder is None or self._stage is None or not steps:
            return ""
        if tracer is not None:
            tracer.stop()
        total = statistics.fmean(steps)
        phases = {name: measured.phases[name] / len(steps) for name in PHASES if name in measured.phases}
        phases[REST] = total - sum(phases.values())
        losses = {name: statistics.median(seconds) for name, seconds in measured.losses.items()}
        result = {
            "stage": self._stage.number,
            "size": self._stage.size,
            "batch": self._stage.batch,
            "rows": len(self._stage.rows),
            "device": str(self._device),
            "steps": len(steps),
            "step_seconds": total,
            "phase_seconds": phases,
            "loss_seconds": losses,
        }
        table = _table(self._stage, phases, losses, total)
        try:
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._folder / f"stage-{self._stage.number}.json", json.dumps(result, indent=1) + "\n")
            if tracer is not None:
                _write_trace(tracer, self._folder / f"trace-stage-{self._stage.number}.json.gz")
        except OSError as error:
            return f"{table}\nWARNING: not all files of this could be written: {error.strerror or error}"
        return table

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _write_trace(tracer: torch.profiler.profile, path: Path) -> None:
    """Under another name first, so that a file of this name is whole."""
    partial = path.with_name(f".{path.name}")
    try:
        tracer.export_chrome_trace(str(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _table(stage: StagePlan, phases: dict[str, float], losses: dict[str, float], total: float) -> str:
    lines = [f"where a step of stage {stage.number} goes ({stage.size}×{stage.size}, {len(stage.rows)} samples here):"]
    lines += [f"  {name:<24}{1000 * value:10.2f} ms{value / total:8.1%}" for name, value in phases.items()]
    lines += [f"  {'in all':<24}{1000 * total:10.2f} ms"]
    lines += ["each loss alone, forward and backward:"]
    lines += [f"  {name:<24}{1000 * value:10.2f} ms{value / total:8.1%}" for name, value in losses.items()]
    return "\n".join(lines)
