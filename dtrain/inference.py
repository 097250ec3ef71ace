"""Pairs of images through a network: decoded in threads, in batches on the device. Never reads runs or writes files."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dtrain.depth_and_mask import DepthAndMask
from dtrain.image_input import ImageInput, read_rgb
from dtrain.panel import PanelSamples, draw_panel
from dtrain.seen_size import Sides, SizeChoice, seen_size
from shard_tools.errors import UserError
from shard_tools.pixels import Pixels, decode_gray

BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**21}
"""How many pixels a batch has at most, unless one image has more: 4 images of 256×256, and 32."""

MOST_IN_BATCH = 32
"""However small images are seen: what is held beside, to be shown, may be larger."""

PANEL_SIDE = 512
"""The longer side at which a panel shows an image, at most, in pixels."""

MAX_WORKERS = 8

_WHILE_RESIZING = Image.Resampling.BILINEAR
"""Antialiased, as images are resized in training."""

_NO_MEMORY = "allocate"
"""In what torch raises where memory does not suffice; it has no type of its own for that of the CPU."""

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """A background, the same with an object on it, and where it is known the truth as bytes of image files."""

    name: str
    bg: ImageInput
    fgbg: ImageInput
    depth: bytes | None = None
    mask: bytes | None = None


PairType = TypeVar("PairType", bound=Pair)


@dataclass(frozen=True)
class Pictures:
    """What a panel shows beside the prediction, made small: uint8 (h, w, 3), and the truth float32 (h, w)."""

    name: str
    bg: Pixels
    fgbg: Pixels
    depth: Plane | None
    mask: Plane | None


@dataclass(frozen=True)
class Result:
    """What the network says of a pair, at the size of its images.

    `depth`: float32 (H, W) in [0, 1], 0 near and 1 far as in the data that it was trained on. `mask`: float32 (H, W),
    the probability that a pixel belongs to the object.
    """

    depth: Plane
    mask: Plane
    pictures: Pictures

    def panel(self) -> Image.Image:
        """A picture of the pair and what was predicted, beside the truth where that is known."""
        height, width = self.pictures.bg.shape[:2]

        def small(plane: Plane) -> Plane:
            return np.asarray(Image.fromarray(plane).resize((width, height), _WHILE_RESIZING))[None]

        def batch(plane: Plane | None) -> Plane | None:
            return None if plane is None else plane[None]

        return draw_panel(
            PanelSamples(
                keys=[self.pictures.name],
                bg=self.pictures.bg[None],
                fgbg=self.pictures.fgbg[None],
                depth=batch(self.pictures.depth),
                depth_predicted=small(self.depth),
                mask=batch(self.pictures.mask),
                mask_predicted=small(self.mask),
            )
        )


@dataclass(frozen=True)
class _Prepared(Generic[PairType]):
    """A decoded pair: `seen`, uint8 (h, w, 6), is what goes into the network."""

    pair: PairType
    seen: Pixels
    native: Sides
    pictures: Pictures


def infer(
    module: DepthAndMask, device: torch.device, pairs: Iterable[PairType], choice: SizeChoice
) -> Generator[tuple[PairType, Result | UserError]]:
    """Each pair with what the network says of it, in their order, or with what is wrong with it.

    Pairs are taken from `pairs` as they are needed: at most two batches of them are held, or one for each thread.
    Neighbours that the network sees at the same size share a batch. `module` is in evaluation mode on `device`.
    """
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    pool = ThreadPoolExecutor(workers, "decode")
    waiting: deque[Future[_Prepared[PairType] | tuple[PairType, UserError]]] = deque()
    batch: list[_Prepared[PairType]] = []
    source = iter(pairs)
    ahead = workers
    try:
        while True:
            while len(waiting) < ahead and (pair := next(source, None)) is not None:
                waiting.append(pool.submit(_prepare, pair, choice))
            prepared = waiting.popleft().result() if waiting else None
            full = _batch_size(batch[0].seen, device) if batch else 0
            if batch and (
                not isinstance(prepared, _Prepared) or len(batch) >= full or prepared.seen.shape != batch[0].seen.shape
            ):
                yield from _predict(module, device, batch)
                batch = []
            if prepared is None:
                return
            if isinstance(prepared, _Prepared):
                batch.append(prepared)
                ahead = max(workers, 2 * _batch_size(prepared.seen, device))
            else:
                yield prepared
    finally:
        pool.shutdown(cancel_futures=True)


def _batch_size(seen: Pixels, device: torch.device) -> int:
    height, width, _ = seen.shape
    most = BATCH_PIXELS.get(device.type, BATCH_PIXELS["cpu"]) // (height * width)
    return min(max(int(most), 1), MOST_IN_BATCH)


def _prepare(pair: PairType, choice: SizeChoice) -> _Prepared[PairType] | tuple[PairType, UserError]:
    try:
        bg, fgbg = read_rgb(pair.bg, f"{pair.name}: bg"), read_rgb(pair.fgbg, f"{pair.name}: fgbg")
        if bg.shape != fgbg.shape:
            names = (_called(image, what) for image, what in ((pair.bg, "bg"), (pair.fgbg, "fgbg")))
            sizes = (
                f"{name} is {image.shape[1]}×{image.shape[0]}" for name, image in zip(names, (bg, fgbg), strict=True)
            )
            raise UserError(f"{' but '.join(sizes)}; expected equal sizes")
        native = Sides(*bg.shape[:2])
        sides = seen_size(native, choice)
        shown = _shown_size(native)
        pictures = Pictures(
            pair.name,
            _resized(bg, shown),
            _resized(fgbg, shown),
            _truth(pair.depth, f"{pair.name}: depth", shown),
            _truth(pair.mask, f"{pair.name}: mask", shown),
        )
        return _Prepared(pair, np.concatenate([_resized(bg, sides), _resized(fgbg, sides)], axis=2), native, pictures)
    except UserError as error:
        return pair, error
    except MemoryError:
        return pair, _too_large(pair)


def _called(image: ImageInput, what: str) -> str:
    return str(image) if not isinstance(image, bytes | Image.Image | np.ndarray) else what


def _shown_size(native: Sides) -> Sides:
    scale = min(1.0, PANEL_SIDE / max(native))
    return Sides(*(max(round(side * scale), 1) for side in native))


def _resized(pixels: Pixels, sides: Sides) -> Pixels:
    if pixels.shape[:2] == tuple(sides):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((sides.width, sides.height), _WHILE_RESIZING))


def _truth(data: bytes | None, what: str, sides: Sides) -> Plane | None:
    if data is None:
        return None
    try:
        return (_resized(decode_gray(data), sides) / 255).astype(np.float32)
    except ValueError as error:
        raise UserError(f"{what}: can't be read as an image: {error}") from None


def _predict(
    module: DepthAndMask, device: torch.device, batch: Sequence[_Prepared[PairType]]
) -> Generator[tuple[PairType, Result | UserError]]:
    """One batch; where it does not fit into the memory of the device, one pair at a time."""
    try:
        depth, mask = _run(module, device, batch)
    except _NoMemoryError:
        for prepared in batch:
            if len(batch) == 1:
                yield prepared.pair, _too_large(prepared.pair)
            else:
                yield from _predict(module, device, [prepared])
        return
    for row, prepared in enumerate(batch):
        yield prepared.pair, _result(depth[row], mask[row], prepared)


def _run(module: DepthAndMask, device: torch.device, batch: Sequence[_Prepared[PairType]]) -> tuple[Tensor, Tensor]:
    with _memory_errors(), torch.inference_mode():
        seen = torch.from_numpy(np.stack([prepared.seen for prepared in batch])).to(device)
        depth, mask = module(seen.permute(0, 3, 1, 2).float() / 255)
        return depth, mask


def _result(depth: Tensor, mask: Tensor, prepared: _Prepared[PairType]) -> Result | UserError:
    """Made for one pair after the other, as its images may be far larger than what the network sees."""
    try:
        result = Result(_native(depth, prepared.native), _native(mask, prepared.native), prepared.pictures)
    except _NoMemoryError:
        return _too_large(prepared.pair)
    finite = np.isfinite(result.depth).all() and np.isfinite(result.mask).all()
    return result if finite else _not_finite(prepared.pair)


def _native(plane: Tensor, native: Sides) -> Plane:
    """(1, h, w) at the size of the image."""
    with _memory_errors(), torch.inference_mode():
        if tuple(plane.shape[-2:]) != native:
            plane = F.interpolate(plane[None], native, mode="bilinear", antialias=True)[0].clamp(0, 1)
        values: Plane = plane[0].cpu().numpy().copy()  # does not hold on to the batch
        return values


class _NoMemoryError(Exception):
    """There is not enough of it, on the device or beside it."""


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise _NoMemoryError from None
    except RuntimeError as error:
        if _NO_MEMORY not in str(error):
            raise
        raise _NoMemoryError from None


def _not_finite(pair: Pair) -> UserError:
    called = _called(pair.fgbg, pair.name)
    return UserError(f"{called}: the network predicts values that are not finite; choose another --checkpoint")


def _too_large(pair: Pair) -> UserError:
    return UserError(f"{_called(pair.fgbg, pair.name)}: needs more memory than there is; choose a smaller --size")
