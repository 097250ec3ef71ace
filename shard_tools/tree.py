"""Write every background × foreground × placement as a tree of JPEG files, and finish the tree of a killed run.

The layout: bg/bg1.jpg ..; bg1/fg_1/{overlay,depth,mask}/1.jpg .. 40.jpg; dataset.json, which comes last and says what
the tree is. What the pictures show is the business of the callers, `sample` and `compose`.

While a tree is being written, its `.unfinished/` holds the coming dataset.json, which tells whether a later run means
the same tree, and the prepared backgrounds and foregrounds.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shard_tools import recipe
from shard_tools.atomic import sync_directory, write_atomically
from shard_tools.errors import UserError
from shard_tools.progress import Progress
from shard_tools.tree_pair import (
    CHROMA_SUBSAMPLING,
    JPEG_QUALITY,
    UNFINISHED,
    Estimator,
    Pair,
    encode,
    scale_foreground,
    write_pair,
)
from shard_tools.workers import run_tasks

METADATA = "dataset.json"
MAX_LISTED_PROBLEMS = 10


@dataclass(frozen=True)
class Background:
    """A background of S × S pixels: `image` RGB uint8 (S, S, 3), `depth` float64 (S, S) in [0, 1], 0 near and 1 far."""

    image: NDArray[np.uint8]
    depth: NDArray[np.float64]


BackgroundMaker = Callable[[], Background]
ForegroundMaker = Callable[[], Image.Image]
"""Makes an RGBA image, cropped to what is visible of it. Makers are pickled, and may raise UserError."""


def check_size(size: int) -> None:
    """Raise UserError for an image side that the recipe or the network cannot use."""
    if not recipe.MIN_SIZE <= size <= recipe.MAX_SIZE or size % recipe.SIZE_MULTIPLE:
        raise UserError(
            f"--size {size}: expected a multiple of {recipe.SIZE_MULTIPLE} from {recipe.MIN_SIZE} to "
            f"{recipe.MAX_SIZE}; take for example 64, 128 or 256"
        )


def describe(
    *, size: int, depth: Mapping[str, object], source: Mapping[str, object], estimated: bool = False
) -> dict[str, Any]:
    """The content of dataset.json: the recipe, `depth` (kind and unit) and `source` (what the pictures came from).

    Where depth is `estimated`, the rows in which objects stand have no depth of their own.
    """
    rows = [
        {"size": round(side, 4), "base": round(recipe.base_line(side), 4)}
        | ({} if estimated else {"depth": round(recipe.floor_depth(recipe.base_line(side)), 4)})
        for side in recipe.SIZES
    ]
    return {
        "format": 1,
        **source,
        "placements": len(recipe.PLACEMENTS),
        "size": size,
        "depth": {"range": "0..1, stored as grey 0..255; 0 near, 1 far", **depth},
        "mask": "alpha, stored as grey 0..255",
        "recipe": {
            "unit": "fractions of the image's side",
            "horizon": recipe.HORIZON,
            "rows": rows,
            "columns": recipe.COLUMNS,
            "mirrored": "placements 21..40 are the mirror images of 1..20",
        },
        "jpeg": {"quality": JPEG_QUALITY, "subsampling": f"{':'.join(CHROMA_SUBSAMPLING)}; depth and mask grey"},
    }


def write_tree(
    out: Path,
    metadata: Mapping[str, Any],
    backgrounds: Sequence[BackgroundMaker],
    foregrounds: Sequence[ForegroundMaker],
    *,
    workers: int,
    estimate: Estimator | None = None,
) -> str:
    """Write the tree at `out`, or what is missing of it, and say what was done in a line.

    `metadata` identifies the tree: a run goes on with, or has nothing to do for, a tree that says the same, and is
    refused at any other. With `estimate`, depth is what that makes of the overlays, and this process writes them;
    without, objects are pasted into the backgrounds' depth by `workers` processes. Raises UserError for another tree,
    for pictures that cannot be made, and if `out` is not writable.
    """
    tuples = len(backgrounds) * len(foregrounds) * len(recipe.PLACEMENTS)
    what = (
        f"{tuples:,} tuples ({len(backgrounds)} backgrounds × {len(foregrounds)} foregrounds × "
        f"{len(recipe.PLACEMENTS)} placements) of {metadata['size']} px"
    )
    document = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
    unfinished = out / UNFINISHED
    with _writing_errors(out):
        state = _state(out, document)
        if state == "complete":
            shutil.rmtree(unfinished, ignore_errors=True)
            return f"{out} is complete: {what}; nothing to do"
        if state == "new":
            shutil.rmtree(unfinished, ignore_errors=True)
        made_out = not out.exists()
        unfinished.mkdir(parents=True, exist_ok=True)
        write_atomically(unfinished / METADATA, document)
        try:
            _prepare(unfinished, metadata["size"], backgrounds, foregrounds, workers)
        except UserError:
            if state == "new":
                shutil.rmtree(unfinished)
            if made_out:
                out.rmdir()
            raise
        _publish_backgrounds(out, len(backgrounds))
        pairs = [Pair(out, b + 1, f + 1) for b in range(len(backgrounds)) for f in range(len(foregrounds))]
        missing = [pair for pair in pairs if not pair.is_whole()]
        found = (len(pairs) - len(missing)) * len(recipe.PLACEMENTS)
        with closing(Progress("tuples", total=tuples, unit="tuples", initial=found)) as shown:
            for written in run_tasks(partial(write_pair, estimate=estimate), missing, 1 if estimate else workers):
                shown.advance(written)
        os.sync()  # once for all files, before the file that vouches for them
        (unfinished / METADATA).replace(out / METADATA)
        sync_directory(out)
        shutil.rmtree(unfinished)
    return f"{out} holds {what}" + (f", {found:,} of them from an earlier run" if found else "")


@contextmanager
def _writing_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot write there ({error.strerror or error}); expected a folder that you may "
            "write to, on a disk with room; mend that and run the same command again"
        ) from None


def _state(out: Path, document: str) -> str:
    """What `out` is to a run that would write `document`: "new", "begun" or "complete"; UserError for anything else."""
    if not out.exists():
        return "new"
    if not out.is_dir():
        raise UserError(
            f"{out}: expected a folder to write to, or a name not yet taken; it is a file; choose another OUT"
        )
    if all(path.name == UNFINISHED for path in out.iterdir()):
        return "new"
    for state, path in (("complete", out / METADATA), ("begun", out / UNFINISHED / METADATA)):
        if path.exists():
            if path.read_text(encoding="utf-8") == document:
                return state
            raise UserError(
                f"{out}: holds a data set made from other inputs or with other arguments ({path}); expected one "
                "that this command began; choose another OUT, or delete this one first"
            )
    raise UserError(f"{out}: expected an empty or a new folder; it holds other files; choose another OUT")


@dataclass(frozen=True)
class _Preparation:
    """Make one picture and keep it as arrays that the pairs read."""

    target: Path
    size: int
    make_background: BackgroundMaker | None = None
    make_foreground: ForegroundMaker | None = None


def _prepare(
    unfinished: Path,
    size: int,
    backgrounds: Sequence[BackgroundMaker],
    foregrounds: Sequence[ForegroundMaker],
    workers: int,
) -> None:
    tasks = [
        _Preparation(unfinished / f"bg{n}.npz", size, make_background=make) for n, make in enumerate(backgrounds, 1)
    ] + [_Preparation(unfinished / f"fg_{n}.npz", size, make_foreground=make) for n, make in enumerate(foregrounds, 1)]
    problems = []
    with closing(Progress("pictures", total=len(tasks), unit="pictures")) as shown:
        for problem in run_tasks(_prepare_one, tasks, min(workers, len(tasks)) if workers > 0 else workers):
            problems += [problem] if problem else []
            shown.advance(1)
    if problems:
        listed = sorted(problems)[:MAX_LISTED_PROBLEMS]
        rest = len(problems) - len(listed)
        raise UserError("\n  ".join(listed + ([f"and {rest} more"] if rest else [])))


def _prepare_one(task: _Preparation) -> str | None:
    """Returns what is wrong with the picture, so that all such pictures are reported at once."""
    try:
        if task.make_background:
            background = task.make_background()
            np.savez(task.target, image=background.image, depth=recipe.depth_to_bytes(background.depth))
            task.target.with_suffix(".jpg").write_bytes(encode(background.image))
        if task.make_foreground:
            sprites = scale_foreground(task.make_foreground(), task.size)
            np.savez(task.target, *sprites)
    except UserError as error:
        return str(error)
    return None


def _publish_backgrounds(out: Path, count: int) -> None:
    (out / "bg").mkdir(exist_ok=True)
    for number in range(1, count + 1):
        name = f"bg{number}.jpg"
        (out / UNFINISHED / name).replace(out / "bg" / name)
