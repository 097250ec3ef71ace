"""The Python interface: a trained network, and what it says of pairs of images. Never writes a file."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import torch

from dtrain.depth_and_mask import DepthAndMask
from dtrain.image_input import ImageInput
from dtrain.inference import Pair, Result, infer
from dtrain.seen_size import parse_size
from dtrain.trained import Trained, load_trained
from shard_tools.errors import UserError


def load(run: str | Path, checkpoint: str | None = None, device: str | torch.device | None = None) -> "Network":
    """The network of a run: of its newest whole checkpoint, its "best" one, or the one of that name.

    `device` is a GPU where there is one, else the CPU. Raises UserError as `load_trained` does.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Network(load_trained(Path(run), checkpoint, chosen), chosen)


class Network:
    """A trained network on its device, in evaluation mode."""

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self.trained = trained
        self.device = device
        self.module = DepthAndMask(trained.module).eval()
        self.size = trained.size
        """At which it was trained last; in pixels."""

    def weights_sha256(self) -> str:
        """Decides, with the size, what is predicted."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def predict(self, bg: ImageInput, fgbg: ImageInput, *, size: int | str | None = None) -> Result:
        """Depth and mask of one pair, at the size of its images.

        Images are paths, Pillow images or uint8 arrays (H, W, 3), both of one size. `size` is that at which the
        network sees them: the shorter side (default: `self.size`), "320x240" (width × height) or "native".
        Raises UserError for an image that can't be read, sizes that differ, or too little memory.
        """
        (result,) = self.predict_many([(bg, fgbg)], size=size)
        return result

    def predict_many(
        self, pairs: Iterable[tuple[ImageInput, ImageInput]], *, size: int | str | None = None
    ) -> Iterator[Result]:
        """The same of many pairs (bg, fgbg), in their order: decoded in threads, in batches, a few held at a time.

        Raises UserError at the first pair that can't be predicted, when its turn comes.
        """
        choice = parse_size(self.size if size is None else size)
        named = (Pair(_name(fgbg, number), bg, fgbg) for number, (bg, fgbg) in zip(count(1), pairs, strict=False))
        for _, result in infer(self.module, self.device, named, choice):
            if isinstance(result, UserError):
                raise result
            yield result


def _name(fgbg: ImageInput, number: int) -> str:
    return Path(fgbg).stem if isinstance(fgbg, str | Path) else f"pair {number}"
