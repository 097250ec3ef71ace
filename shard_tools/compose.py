"""Make tuples from a user's own photographs, with depth from a model, or a flat ground plane as a stand-in for it.

Reads photographs and refuses those that cannot be used; where objects go is the business of `recipe`, writing the
tree that of `tree`, and estimating depth that of `depth_model`.
"""

import hashlib
import re
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shard_tools import recipe
from shard_tools.depth_model import EXAMPLE, load_depth_model
from shard_tools.errors import UserError
from shard_tools.tree import Background, check_size, describe, write_tree

MAX_PIXELS = 89_000_000
"""Of one photograph; below the limit at which Pillow warns of decompression bombs."""

STAND_IN = "stand-in"
MODEL_PREFIX = "hf:"

STAND_IN_DEPTH = {
    "kind": "stand-in: ground plane",
    "note": (
        "not measured and not estimated: below the horizon that of a flat floor under a level camera, "
        "0.12 / (y - horizon), 1 from the far plane on; an object has the depth of the floor it stands on"
    ),
}


@dataclass(frozen=True)
class Source:
    """A photograph: its `path`, and the SHA-256 of the file."""

    path: Path
    sha256: str


def compose(out: Path, *, backgrounds: Path, foregrounds: Path, size: int, workers: int, depth: str = STAND_IN) -> str:
    """Place every foreground of a folder on every background of another one, and say what was made.

    `size` is the side of the pictures in pixels. `depth` is "stand-in", or "hf:" and a folder with a depth-estimation
    model or its name on the Hugging Face hub. A run that was interrupted is finished by the same call. Raises
    UserError for a folder or a picture that cannot be used, a bad size, a model that is none, and an `out` that holds
    something else.
    """
    check_size(size)
    model_name = _model_name(depth)
    background_sources, ignored_backgrounds = find_images(backgrounds, "backgrounds")
    foreground_sources, ignored_foregrounds = find_images(foregrounds, "foregrounds")
    _check_apart(out, backgrounds, foregrounds)
    model = load_depth_model(model_name) if model_name else None
    metadata = describe(
        size=size,
        depth=model.describe() if model else STAND_IN_DEPTH,
        estimated=model is not None,
        source={
            "made_by": "shard-tools compose",
            "backgrounds": [{"file": source.path.name, "sha256": source.sha256} for source in background_sources],
            "foregrounds": [{"file": source.path.name, "sha256": source.sha256} for source in foreground_sources],
        },
    )
    done = write_tree(
        out,
        metadata,
        [partial(read_background, source.path, size) for source in background_sources],
        [partial(read_foreground, source.path) for source in foreground_sources],
        workers=workers,
        estimate=model.estimate if model else None,
    )
    origin = f"estimated by {model.name} on {model.device}" if model else f"a {STAND_IN_DEPTH['kind']}"
    lines = [done, f"depth is {origin}, not measured; masks are the foregrounds' alpha"]
    ignored = ignored_backgrounds + ignored_foregrounds
    if ignored:
        lines.append(f"left out, being no pictures: {', '.join(path.name for path in ignored)}")
    folder = str(out)
    lines.append(f"next: shard-tools build {shlex.quote(folder)} {shlex.quote(folder + '-shards')}")
    return "\n".join(lines)


def _model_name(depth: str) -> str | None:
    """The name of the model that `--depth` means; None for the stand-in."""
    if depth == STAND_IN:
        return None
    name = depth.removeprefix(MODEL_PREFIX)
    if not name or name == depth:
        raise UserError(
            f"--depth {depth}: expected {STAND_IN}, or {MODEL_PREFIX}MODEL with a folder or a name on the Hugging Face "
            f"hub; for example {MODEL_PREFIX}{EXAMPLE}"
        )
    return name


def find_images(folder: Path, role: str) -> tuple[list[Source], list[Path]]:
    """The pictures of `folder` in natural order (2 before 10), and the files that do not have a picture's name.

    Hidden files and folders are passed over. Raises UserError if there is no such folder or no picture in it.
    """
    option = f"--{role} {folder}"
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "there is no such folder"
        raise UserError(f"{option}: {problem}; expected a folder of pictures; check the path")
    try:
        files = sorted(
            (path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")), key=_natural_key
        )
        known = Image.registered_extensions()
        sources = [
            Source(path, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in files
            if path.suffix.lower() in known
        ]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None
    if not sources:
        kind = "PNG with alpha" if role == "foregrounds" else "JPEG, PNG or any other that Pillow reads"
        raise UserError(f"{option}: no pictures in it; expected at least one ({kind}); check the path")
    return sources, [path for path in files if path.suffix.lower() not in known]


def read_background(path: Path, size: int) -> Background:
    """The central square of a photograph, turned as EXIF says, at `size` pixels, with the stand-in depth.

    Raises UserError if the file is no picture that can be used.
    """
    image = _read(path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise UserError(
                f"{path}: a background with transparent parts; expected an opaque picture; flatten it first"
            )
    square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return Background(np.asarray(square), recipe.ground_plane(size))


def read_foreground(path: Path) -> Image.Image:
    """An object as RGBA, turned as EXIF says, cropped to where its alpha is not 0.

    Raises UserError if the file is no picture that can be used, has no alpha, or is wholly transparent.
    """
    image = _read(path)
    if not image.has_transparency_data:
        raise UserError(
            f"{path}: has no alpha channel (mode {image.mode}); expected a PNG with a transparent background; "
            "cut the object out and save it as RGBA PNG"
        )
    image = image.convert("RGBA")
    visible = image.getchannel("A").getbbox()
    if visible is None:
        raise UserError(f"{path}: is wholly transparent; expected an object on a transparent background; leave it out")
    return image.crop(visible)


def _natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"(\d+)|(\D+)", path.name.lower())
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts], path.name


def _check_apart(out: Path, *folders: Path) -> None:
    for folder in folders:
        if folder.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out}: holds the inputs ({folder}); expected a folder of its own; choose another OUT")


def _read(path: Path) -> Image.Image:
    """Decode a picture of at most `MAX_PIXELS` and 8 bits a channel, and turn it as its EXIF orientation says."""
    too_large = UserError(
        f"{path}: more than {MAX_PIXELS / 1e6:.0f} million pixels; expected a photograph; scale it down first"
    )
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large
            image.load()
            turned = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise too_large from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture that can be read; replace the file or leave it out") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); replace the file or leave it out") from None
    if turned.mode in {"I", "F"} or turned.mode.startswith("I;"):
        raise UserError(f"{path}: has more than 8 bits a channel (mode {turned.mode}); save it with 8 bits")
    return turned
