"""Make an embedded data set that needs no download: procedural objects in procedural rooms, with exact depth.

What rooms and objects look like is the business of `rooms` and `objects`; writing the tree that of `tree`.
"""

import shlex
from functools import partial
from pathlib import Path

from shard_tools import recipe
from shard_tools.errors import UserError
from shard_tools.objects import draw_object
from shard_tools.render import depth_map, picture
from shard_tools.rooms import make_room
from shard_tools.tree import Background, check_size, describe, write_tree


def write_sample(out: Path, *, backgrounds: int, foregrounds: int, size: int, seed: int, workers: int) -> str:
    """Place `foregrounds` procedural objects on `backgrounds` procedural rooms, and say what was made.

    `size` is the side of the pictures in pixels. The same arguments give the same bytes, whatever the number of
    workers; a run that was interrupted is finished by the same call. Raises UserError for bad arguments and for an
    `out` that holds something else.
    """
    check_size(size)
    for option, count in (("--backgrounds", backgrounds), ("--foregrounds", foregrounds)):
        if count < 1:
            raise UserError(f"{option} {count}: expected 1 or more")
    metadata = describe(
        size=size,
        depth={
            "kind": "exact: ray-cast geometry",
            "unit": f"distance along the optical axis; 1.0 is {recipe.FAR_METRES:g} metres",
            "far_metres": recipe.FAR_METRES,
        },
        source={
            "made_by": "shard-tools sample",
            "seed": seed,
            "backgrounds": backgrounds,
            "foregrounds": foregrounds,
        },
    )
    done = write_tree(
        out,
        metadata,
        [partial(render_background, seed, number, size) for number in range(1, backgrounds + 1)],
        [partial(draw_object, seed, number, size) for number in range(1, foregrounds + 1)],
        workers=workers,
    )
    build = f"shard-tools build {shlex.quote(str(out))} {shlex.quote(f'{out}-shards')}"
    return f"{done}\ndepth is exact: 1.0 is {recipe.FAR_METRES:g} metres along the optical axis\nnext: {build}"


def render_background(seed: int, number: int, size: int) -> Background:
    """Room `number` in colour, with its exact depth."""
    room = make_room(seed, number)
    return Background(picture(room, size), depth_map(room, size) / recipe.FAR_METRES)
