"""`dtrain predict`: depth and mask of one pair of images of any size."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dtrain.evaluator import evaluating
from dtrain.panel import PanelSamples, draw_panel
from dtrain.sizes import check_size
from dtrain.trained import load_trained
from shard_tools.atomic import atomic_file
from shard_tools.components import MAX_PIXELS
from shard_tools.errors import UserError


def predict(
    path: Path, *, bg: Path, fgbg: Path, out: Path, checkpoint: str | None = None, size: int | None = None
) -> list[Path]:
    """Write OUT/NAME_depth.png (16-bit, 65535 = 1.0), NAME_mask.png (8-bit) and NAME_panel.png; return their paths.

    NAME is that of `fgbg`. The network sees squares of side `size` (default: the last stage's); what it says is
    brought back to the size of the images. Raises UserError for images that can't be read or differ in size.
    """
    check_size(size)
    images = [_read(file) for file in (bg, fgbg)]
    if images[0].size != images[1].size:
        raise UserError(f"{bg} is {_pixels(images[0])} but {fgbg} is {_pixels(images[1])}; expected equal sizes")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained(path, checkpoint, device)
    side = size or trained.config.stages[-1].size

    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    native = torch.cat(pixels)[None].to(device).float() / 255
    seen = F.interpolate(native, (side, side), mode="bilinear", antialias=True)
    with evaluating(trained.module):
        prediction = trained.module(seen)
    height, width = native.shape[-2:]
    depth, mask = (
        F.interpolate(plane, (height, width), mode="bilinear", antialias=True)[0, 0].clamp(0, 1).cpu().numpy()
        for plane in (prediction.depth.float(), prediction.mask)
    )
    panel = draw_panel(
        PanelSamples(
            keys=[fgbg.stem],
            bg=np.asarray(images[0])[None],
            fgbg=np.asarray(images[1])[None],
            depth=None,
            depth_predicted=depth[None],
            mask=None,
            mask_predicted=mask[None],
        )
    )
    results = {
        "depth": Image.fromarray(_scaled(depth, 65535).astype(np.uint16)),
        "mask": Image.fromarray(_scaled(mask, 255).astype(np.uint8)),
        "panel": panel,
    }
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for kind, image in results.items():
            written.append(out / f"{fgbg.stem}_{kind}.png")
            with atomic_file(written[-1]) as file:
                image.save(file, "PNG")
            print(written[-1])
    except OSError as error:
        raise UserError(f"{out}: can't be written: {error.strerror}; choose another --out") from None
    return written


def _scaled(values: NDArray[np.float32], maximum: int) -> NDArray[np.float32]:
    return np.rint(values * maximum)


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {_pixels(image)} pixels are more than {MAX_PIXELS}; make it smaller")
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their parsing hits
        raise UserError(f"{path}: can't be read as an image: {error}") from None


def _pixels(image: Image.Image) -> str:
    return f"{image.width}×{image.height}"
