"""The commands that make a data set: sample, compose. Arguments in, calls out."""

from argparse import Namespace
from pathlib import Path

from shard_tools.commands import Commands, add_command, add_workers

SAMPLE_EXAMPLE = "example: shard-tools sample data/rooms --backgrounds 40 --foregrounds 6 --size 128"
COMPOSE_EXAMPLE = "example: shard-tools compose data/photos --backgrounds photos/bg --foregrounds photos/fg --size 256"


def add_sample(commands: Commands) -> None:
    """Add `sample`."""
    command = add_command(
        commands,
        "sample",
        _run_sample,
        summary="make a data set of procedural rooms with exact depth; needs no input",
        description="Render rooms with exact depth, place procedural objects on them, and write the tree that `build` "
        "reads.",
        example=SAMPLE_EXAMPLE,
    )
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    command.add_argument("--backgrounds", type=int, default=40, metavar="N", help="rooms (default: %(default)s)")
    command.add_argument("--foregrounds", type=int, default=6, metavar="M", help="objects (default: %(default)s)")
    command.add_argument("--size", type=int, default=128, metavar="S", help="side in pixels (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="another seed, other rooms (default: %(default)s)")
    add_workers(command)


def _run_sample(arguments: Namespace) -> str:
    from shard_tools.sample import write_sample

    return write_sample(
        arguments.out,
        backgrounds=arguments.backgrounds,
        foregrounds=arguments.foregrounds,
        size=arguments.size,
        seed=arguments.seed,
        workers=arguments.workers,
    )


def add_compose(commands: Commands) -> None:
    """Add `compose`."""
    command = add_command(
        commands,
        "compose",
        _run_compose,
        summary="place your own foregrounds on your own backgrounds",
        description="Place every foreground (PNG with alpha) and its mirror image at 20 places on every background, "
        "and write the tree that `build` reads. Depth is by default a STAND-IN, not measured and not estimated: a flat "
        "ground plane under a fixed horizon, with the object at the depth of the floor it stands on. With "
        "--depth hf:MODEL a model estimates it from each overlay.",
        example=COMPOSE_EXAMPLE,
    )
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    command.add_argument("--backgrounds", type=Path, required=True, metavar="DIR", help="folder of photos")
    command.add_argument("--foregrounds", type=Path, required=True, metavar="DIR", help="folder of PNGs with alpha")
    command.add_argument("--size", type=int, default=256, metavar="S", help="side in pixels (default: %(default)s)")
    command.add_argument(
        "--depth",
        default="stand-in",
        metavar="stand-in|hf:MODEL",
        help="a flat ground plane (default), or estimated by a Hugging Face depth model, a name on the hub or a folder "
        "(needs dtrain[depth]), such as hf:depth-anything/Depth-Anything-V2-Small-hf",
    )
    add_workers(command)


def _run_compose(arguments: Namespace) -> str:
    from shard_tools.compose import compose

    return compose(
        arguments.out,
        backgrounds=arguments.backgrounds,
        foregrounds=arguments.foregrounds,
        size=arguments.size,
        workers=arguments.workers,
        depth=arguments.depth,
    )
