"""Figures and pictures of a model on a split: every sample once, on any number of processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from dtrain.config import Config
from dtrain.data.dataset import Dataset
from dtrain.data.loader import BadSample, Batch, BatchSource, HostBatch, to_device
from dtrain.data.order import cut, in_packing_order, subset_lengths
from dtrain.data.workers import GaveUpError
from dtrain.figures import Figures
from dtrain.model import Prediction
from dtrain.panel import PanelSamples, draw_panel
from dtrain.resize import resize_prediction
from dtrain.vote import AgreedError, Vote
from shard_tools.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Evaluation:
    """Figures over `samples` samples; `bad` are those of this process that could not be decoded and are left out."""

    figures: Figures
    samples: int
    bad: tuple[BadSample, ...]


@dataclass(frozen=True)
class Seen:
    """A batch that was evaluated, on the device, except for its sums."""

    batch: Batch
    prediction: Prediction
    """Of the size of the truth."""
    sums: Tensor
    """Of each sample, (B, len(SUMS)), float64, on the host."""
    first: int
    """The position in the split of the first sample; those that could not be decoded are left out of the batch."""


class Observer(Protocol):
    """Keeps more of an evaluation than its figures. Each process has its own, which sees that process's samples."""

    def add(self, seen: Seen) -> None:
        """Take a batch."""


def of_each_process(vote: Vote, value: Value) -> list[Value]:
    """What each process has, by rank; to be called by every process, with something that can be pickled."""
    return cast("list[Value]", vote.gather(value))


class Evaluator:
    """Evaluates models on one split at one image size; reads nothing until it is asked to."""

    def __init__(self, config: Config, dataset: Dataset, accelerator: Accelerator, split: str) -> None:
        """Raises UserError if the split has fewer samples than the config asks for."""
        self._config = config
        self._dataset = dataset
        self._accelerator = accelerator
        self.split = split
        lengths = dataset.lengths(split)
        try:
            self._lengths = subset_lengths(lengths, config.evaluate.samples)
        except UserError as error:
            raise UserError(f"evaluate.{error}") from None
        self.samples = sum(self._lengths)

    def figures(
        self,
        module: nn.Module,
        size: int,
        vote: Vote,
        progress: Callable[[int], None] = lambda batch: None,
        observers: Sequence[Observer] = (),
    ) -> Evaluation | None:
        """Figures over the split, the same on every process; None if all agreed to stop on the way.

        `module` is not wrapped for DDP; `progress` is told the number of each batch. Raises AgreedError if a process
        can't read its part.
        """
        from dtrain.metrics import DepthMaskMetrics

        world_size, batch = self._accelerator.num_processes, self._config.evaluate.batch
        rows = cut(self.samples, world_size)[self._accelerator.process_index]
        most_rows = math.ceil(self.samples / world_size)
        metrics = DepthMaskMetrics().to(self._accelerator.device)
        bad: list[BadSample] = []
        with self._loader(size) as loader, evaluating(module):
            reading = in_packing_order(self._lengths, rows, batch)
            with closing(loader.batches(reading, lambda: vote.wants_to_stop)) as batches:
                for number in range(math.ceil(most_rows / batch)):
                    progress(number)
                    host_batch = self._next(batches, vote)
                    bad += host_batch.bad if host_batch else ()
                    vote.cast(len(bad))
                    if host_batch and host_batch.keys:
                        moved = to_device(host_batch, self._accelerator.device, size)
                        prediction = resize_prediction(module(moved.images), (size, size))
                        metrics.update(prediction, moved.depth, moved.mask)
                        if observers:
                            first = rows.start + number * batch
                            seen = Seen(moved, prediction, metrics.latest.cpu(), first)
                            for observer in observers:
                                observer.add(seen)
                    agreement = vote.read()
                    if agreement.stop:
                        return None
        left_out = sum(count for (count,) in agreement.counts)
        if left_out == self.samples:
            raise AgreedError(f"{self.split}: none of its {self.samples} samples can be decoded")
        return Evaluation(metrics.compute(), self.samples - left_out, tuple(bad))

    def _next(self, batches: Iterator[HostBatch], vote: Vote) -> HostBatch | None:
        """The next batch of this process; None if there is none, or because of a failure, or of a signal."""
        try:
            return next(batches, None)
        except GaveUpError:
            return None
        except Exception as error:
            vote.fail(error)
            return None

    def panel(self, module: nn.Module, size: int) -> Image.Image | None:
        """The picture panel of the first samples of the split, always the same ones; None if all of them are bad."""
        count = min(self._config.evaluate.panel_samples, self.samples)
        with self._loader(size) as loader, evaluating(module):
            with closing(loader.batches(in_packing_order(self._lengths, range(count), count))) as batches:
                host_batch = next(batches)
            if not host_batch.keys:
                return None
            batch = to_device(host_batch, self._accelerator.device, size)
            return draw_panel(panel_samples(batch, resize_prediction(module(batch.images), (size, size))))

    def _loader(self, size: int) -> closing[BatchSource]:
        return closing(self._dataset.loader(self.split, size=size, device=self._accelerator.device))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode from before comes back."""
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(training)


def panel_samples(batch: Batch, prediction: Prediction) -> PanelSamples:
    """A batch and what was predicted for it, as pictures on the host."""

    def plane(tensor: Tensor) -> Tensor:
        return tensor[:, 0].float().cpu()

    images = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return PanelSamples(
        keys=batch.keys,
        bg=images[..., :3],
        fgbg=images[..., 3:],
        depth=plane(batch.depth).numpy(),
        depth_predicted=plane(prediction.depth).numpy(),
        mask=plane(batch.mask).numpy(),
        mask_predicted=plane(prediction.mask).numpy(),
    )
