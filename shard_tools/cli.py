"""The command `shard-tools`: arguments in, messages out; the work is done by the modules it calls."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shard_tools.errors import UserError

SAMPLE_EXAMPLE = "example: shard-tools sample data/rooms --backgrounds 40 --foregrounds 6 --size 128"
COMPOSE_EXAMPLE = "example: shard-tools compose data/photos --backgrounds photos/bg --foregrounds photos/fg --size 256"
BUILD_EXAMPLE = "example: shard-tools build data/photos data/shards --workers 8"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="shard-tools",
        description="From a tree of bg / fgbg / depth / mask images to WebDataset shards.",
        epilog=BUILD_EXAMPLE,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def add(name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=description, epilog=example)
        command.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (default: %(default)s)")
        return command

    sample = add(
        "sample",
        "make a data set of procedural rooms with exact depth; needs no input",
        "Render rooms with exact depth, place procedural objects on them, and write the tree that `build` reads.",
        SAMPLE_EXAMPLE,
    )
    sample.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    sample.add_argument("--backgrounds", type=int, default=40, metavar="N", help="rooms (default: %(default)s)")
    sample.add_argument("--foregrounds", type=int, default=6, metavar="M", help="objects (default: %(default)s)")
    sample.add_argument("--size", type=int, default=128, metavar="S", help="side in pixels (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0, help="another seed, other rooms (default: %(default)s)")

    compose = add(
        "compose",
        "place your own foregrounds on your own backgrounds",
        "Place every foreground (PNG with alpha) and its mirror image at 20 places on every background, and write "
        "the tree that `build` reads. The depth maps are a STAND-IN, not measured and not estimated: a flat ground "
        "plane under a fixed horizon, with the object at the depth of the floor it stands on.",
        COMPOSE_EXAMPLE,
    )
    compose.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    compose.add_argument("--backgrounds", type=Path, required=True, metavar="DIR", help="folder of photos")
    compose.add_argument("--foregrounds", type=Path, required=True, metavar="DIR", help="folder of PNGs with alpha")
    compose.add_argument("--size", type=int, default=256, metavar="S", help="side in pixels (default: %(default)s)")

    build = add(
        "build",
        "pack a tree of images into shards",
        "Split by background, shuffle with a seed, and pack into WebDataset tars with an index beside each and "
        "shards.json last. The same arguments give the same bytes; the same command finishes an interrupted build.",
        BUILD_EXAMPLE,
    )
    build.add_argument("source", type=Path, metavar="SRC", help="tree with bg/ and bgB/fg_F/{overlay,depth,mask}/")
    build.add_argument("out", type=Path, metavar="OUT", help="folder for shards, indexes and shards.json")
    build.add_argument(
        "--train",
        type=int,
        metavar="N",
        help="the first N tuples train (default: those of 3/4 of the backgrounds)",
    )
    build.add_argument("--test", type=int, metavar="N", help="the N tuples after them test (default: all the rest)")
    build.add_argument(
        "--shard-size", type=int, default=1000, metavar="N", help="tuples in a shard (default: %(default)s)"
    )
    build.add_argument("--seed", type=int, default=0, help="of the shuffle (default: %(default)s)")
    build.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="a missing or unreadable file: stop with a list, or leave the tuple out and count it (default: fail)",
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say and print what came of it."""
    match arguments.command:
        case "sample":
            from shard_tools.sample import write_sample

            print(
                write_sample(
                    arguments.out,
                    backgrounds=arguments.backgrounds,
                    foregrounds=arguments.foregrounds,
                    size=arguments.size,
                    seed=arguments.seed,
                    workers=arguments.workers,
                )
            )
        case "compose":
            from shard_tools.compose import compose

            print(
                compose(
                    arguments.out,
                    backgrounds=arguments.backgrounds,
                    foregrounds=arguments.foregrounds,
                    size=arguments.size,
                    workers=arguments.workers,
                )
            )
        case "build":
            from shard_tools.build import build

            print(
                build(
                    arguments.source,
                    arguments.out,
                    train=arguments.train,
                    test=arguments.test,
                    shard_size=arguments.shard_size,
                    seed=arguments.seed,
                    on_bad=arguments.on_bad,
                    workers=arguments.workers,
                )
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 0 when all is done, 1 for a user's mistake, 130 for Ctrl-C."""
    try:
        run(build_parser().parse_args(argv))
    except UserError as error:
        print(f"shard-tools: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shard-tools: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
