"""Figures and pictures of a model on a split: every sample once, on any number of processes."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from dtrain.config import Config
from dtrain.data.loader import Batch, Loader, make_loader, to_device
from dtrain.data.order import SampleRefs, cut, in_packing_order, subset_lengths
from dtrain.metrics import DepthMaskMetrics, Figures
from dtrain.model import Prediction
from dtrain.panel import PanelSamples, draw_panel
from shard_tools.errors import UserError
from shard_tools.manifest import Manifest


class Evaluator:
    """Evaluates models on one split at one image size; reads nothing until it is asked to."""

    def __init__(self, config: Config, folder: Path, manifest: Manifest, accelerator: Accelerator, split: str) -> None:
        """`folder` holds the manifest. Raises UserError if the split has fewer samples than the config asks for."""
        self._config = config
        self._folder = folder
        self._manifest = manifest
        self._accelerator = accelerator
        self._split = split
        lengths = [shard.samples for shard in manifest.split(split).shards]
        try:
            self._lengths = subset_lengths(lengths, config.evaluate.samples)
        except UserError as error:
            raise UserError(f"evaluate.{error}") from None
        self.samples = sum(self._lengths)

    def figures(self, module: nn.Module, size: int, should_stop: Callable[[], bool] = lambda: False) -> Figures | None:
        """Figures over the split, the same on every process; None if `should_stop` said so on the way.

        `module` is not wrapped for DDP. `should_stop` is called equally often by every process.
        """
        world_size, batch = self._accelerator.num_processes, self._config.evaluate.batch
        rows = cut(self.samples, world_size)[self._accelerator.process_index]
        most_rows = math.ceil(self.samples / world_size)
        metrics = DepthMaskMetrics().to(self._accelerator.device)
        plan = (self._refs(rows[start : start + batch]) for start in range(0, len(rows), batch))
        with self._loader(size) as loader, evaluating(module):
            batches = loader.batches(plan)
            for _ in range(math.ceil(most_rows / batch)):
                if should_stop():
                    return None
                host_batch = next(batches, None)
                if host_batch is not None:
                    moved = to_device(host_batch, self._accelerator.device, size)
                    metrics.update(module(moved.images), moved.depth, moved.mask)
        figures: Figures = metrics.compute()
        return figures

    def panel(self, module: nn.Module, size: int) -> Image.Image:
        """The picture panel of the first samples of the split, always the same ones."""
        count = min(self._config.evaluate.panel_samples, self.samples)
        with self._loader(size) as loader, evaluating(module):
            host_batch = next(loader.batches([self._refs(range(count))]))
            batch = to_device(host_batch, self._accelerator.device, size)
            return draw_panel(panel_samples(batch, module(batch.images)))

    def _refs(self, positions: range) -> SampleRefs:
        return in_packing_order(self._lengths, positions)

    def _loader(self, size: int) -> closing[Loader]:
        return closing(
            make_loader(
                self._config.data,
                self._folder,
                self._manifest,
                self._split,
                size=size,
                device=self._accelerator.device,
            )
        )


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
