"""The files of one prediction: NAME_depth.png, NAME_mask.png, NAME_panel.png. Knows nothing of how it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dtrain.inference import Result
from shard_tools.atomic import atomic_file

Origin = Mapping[str, Any]
"""What decides a prediction: checkpoint, size and inputs, as JSON."""

KINDS = ("panel", "mask", "depth")
"""In the order in which they are written: the depth vouches for the others."""

_KEY = "dtrain"


def paths(out: Path, name: str) -> list[Path]:
    """The files of a prediction; `name` may be in folders, with "/" between them."""
    return [out / f"{name}_{kind}.png" for kind in KINDS]


def is_written(out: Path, name: str, origin: Origin) -> bool:
    """Whether all files are there and were made from `origin`."""
    *others, depth = paths(out, name)
    try:
        with Image.open(depth, formats=["PNG"]) as image:
            found = json.loads(image.info[_KEY])
    except (OSError, ValueError, KeyError, SyntaxError):
        return False
    return bool(found == origin) and all(path.is_file() for path in others)


def write(out: Path, name: str, result: Result, origin: Origin) -> None:
    """Write depth (16-bit, 65535 = 1.0), mask (8-bit, 255 = 1.0) and panel, each whole. Raises OSError.

    Each says in its PNG text "dtrain" what it was made from.
    """
    images = {
        "panel": result.panel(),
        "mask": Image.fromarray(np.rint(result.mask * 255).astype(np.uint8)),
        "depth": Image.fromarray(np.rint(result.depth * 65535).astype(np.uint16)),
    }
    text = PngInfo()
    text.add_text(_KEY, json.dumps(origin))
    for kind, path in zip(KINDS, paths(out, name), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            images[kind].save(file, "PNG", pnginfo=text)
