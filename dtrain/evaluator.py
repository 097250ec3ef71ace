"""Figures and pictures of a model on a split: every sample once, on any number of processes."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from dtrain.config import Config
from dtrain.data.dataset import Dataset
from dtrain.data.loader import BadSample, Batch, HostBatch, to_device
from dtrain.data.order import cut, in_packing_order, subset_lengths
from dtrain.data.workers import GaveUpError
from dtrain.figures import Figures
from dtrain.model import Prediction
from dtrain.panel import PanelSamples, draw_panel
from dtrain.resize import resize, resize_prediction
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
    """All of the size of the truth, also the images, whatever the network saw."""
    prediction: Prediction
    """Of the same size."""
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
    """Evaluates models on one split; reads nothing until it is asked to.

    Models are fed images of one size, and judged by truth of the same or of another one, to which predictions are
    brought bilinearly. So models that are fed different sizes can be judged alike.
    """

    def __init__(
        self, config: Config, dataset: Dataset, accelerator: Accelerator, split: str, judged_at: int | None = None
    ) -> None:
        """`judged_at`: side of the truth in pixels; None: that of the images, whatever it is.

        Raises UserError if the split has fewer samples than the config asks for.
        """
        self._config = config
        self._dataset = dataset
        self._accelerator = accelerator
        self._judged_at = judged_at
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

        `module` is not wrapped for DDP, and sees images of side `size`; `progress` is told the number of each batch.
        Raises AgreedError if a process can't read its part.
        """
        from dtrain.metrics import DepthMaskMetrics

        world_size, batch = self._accelerator.num_processes, self._config.evaluate.batch
        rows = cut(self.samples, world_size)[self._accelerator.process_index]
        most_rows = math.ceil(self.samples / world_size)
        metrics = DepthMaskMetrics().to(self._accelerator.device)
        bad: list[BadSample] = []
        with self._batches(size, rows, batch, lambda: vote.wants_to_stop) as batches, evaluating(module):
            for number in range(math.ceil(most_rows / batch)):
                progress(number)
                pair = self._next(batches, vote)
                bad += pair.truth.bad if pair else ()
                vote.cast(len(bad))
                if pair and pair.truth.keys:
                    truth, prediction = self._predict(module, pair, size)
                    metrics.update(prediction, truth.depth, truth.mask)
                    if observers:
                        first = rows.start + number * batch
                        seen = Seen(truth, prediction, metrics.latest.cpu(), first)
                        for observer in observers:
                            observer.add(seen)
                agreement = vote.read()
                if agreement.stop:
                    return None
        left_out = sum(count for (count,) in agreement.counts)
        if left_out == self.samples:
            raise AgreedError(f"{self.split}: none of its {self.samples} samples can be decoded")
        return Evaluation(metrics.compute(), self.samples - left_out, tuple(bad))

    def _next(self, batches: Iterator["_Pair"], vote: Vote) -> "_Pair | None":
        """The next batch of this process; None if there is none, or because of a failure, or of a signal."""
        try:
            return next(batches, None)
        except GaveUpError:
            return None
        except Exception as error:
            vote.fail(error)
            return None

    def panel(self, module: nn.Module, size: int) -> Image.Image | None:
        """The picture panel of the first samples of the split, always the same ones; None if all of them are bad.

        `module` sees images of side `size`; all pictures are of the size of the truth.
        """
        count = min(self._config.evaluate.panel_samples, self.samples)
        with self._batches(size, range(count), count) as batches, evaluating(module):
            pair = next(batches)
            return draw_panel(panel_samples(*self._predict(module, pair, size))) if pair.truth.keys else None

    def _predict(self, module: nn.Module, pair: "_Pair", size: int) -> tuple[Batch, Prediction]:
        """The truth, and what `module` says of the images at side `size`, at the size of the truth."""
        device, side = self._accelerator.device, self._judged_at or size
        truth = to_device(pair.truth, device, side)
        fed = truth if pair.fed is pair.truth else to_device(pair.fed, device, self._decoded_size(size))
        prediction = module(resize(fed.images, (size, size)))
        return truth, resize_prediction(prediction, (side, side))

    def _decoded_size(self, size: int) -> int:
        """The side that images are decoded at to be fed at `size`: as in the last stage of that size.

        Where a stage has a larger `loss_size`, its network has only seen images that were made smaller from that.
        """
        stages = [stage for stage in self._config.stages if stage.size == size]
        return max(size, stages[-1].loss_size or size) if stages else size

    @contextmanager
    def _batches(
        self, size: int, rows: range, batch: int, give_up: Callable[[], bool] = lambda: False
    ) -> Iterator[Iterator["_Pair"]]:
        """These rows of the split, read once, or twice where the truth is of another size than the images."""
        sides = dict.fromkeys((self._decoded_size(size), self._judged_at or size))
        with ExitStack() as stack:
            readings = []
            for side in sides:
                loader = self._dataset.loader(self.split, size=side, device=self._accelerator.device)
                stack.enter_context(closing(loader))
                reading = in_packing_order(self._lengths, rows, batch)
                readings.append(stack.enter_context(closing(loader.batches(reading, give_up))))
            yield self._pairs(readings)

    def _pairs(self, readings: Sequence[Iterator[HostBatch]]) -> Generator["_Pair"]:
        """From one reading, or from that of the images and that of the truth."""
        for batches in zip(*readings, strict=True):
            pair = _Pair(batches[0], batches[-1])
            if pair.fed.keys != pair.truth.keys:
                raise UserError(
                    f"{self.split}: was read twice, at two sizes, and the samples were not the same; expected shards "
                    "that nobody changes meanwhile; run the same command again"
                )
            yield pair


@dataclass(frozen=True)
class _Pair:
    """The same samples as the network is fed them, and as it is judged by them; one batch where the sizes are one."""

    fed: HostBatch
    truth: HostBatch


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
