"""The command `shard-tools`: arguments in, messages out; the work is done by the modules it calls."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shard_tools.errors import UserError

SAMPLE_EXAMPLE = "example: shard-tools sample data/rooms --backgrounds 40 --foregrounds 6 --size 128"
COMPOSE_EXAMPLE = "example: shard-tools compose data/photos --backgrounds photos/bg --foregrounds photos/fg --size 256"
BUILD_EXAMPLE = "example: shard-tools build data/photos data/shards --workers 8"
MERGE_EXAMPLE = "example: shard-tools merge data/shards"
LOCATE_EXAMPLE = "example: shard-tools locate data/photos 300001"

Arguments = argparse.Namespace
Commands = Any
"""argparse's collection of commands, which has no public type."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="shard-tools",
        description="From a tree of bg / fgbg / depth / mask images to WebDataset shards.",
        epilog=BUILD_EXAMPLE,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_sample, _add_compose, _add_build, _add_merge, _add_locate):
        add(commands)
    return parser


def _add(
    commands: Commands, name: str, run: Callable[[Arguments], str], *, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description, epilog=example)
    command.set_defaults(run=run)
    return command


def _add_workers(command: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (default: %(default)s)")


def _add_sample(commands: Commands) -> None:
    command = _add(
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
    _add_workers(command)


def _run_sample(arguments: Arguments) -> str:
    from shard_tools.sample import write_sample

    return write_sample(
        arguments.out,
        backgrounds=arguments.backgrounds,
        foregrounds=arguments.foregrounds,
        size=arguments.size,
        seed=arguments.seed,
        workers=arguments.workers,
    )


def _add_compose(commands: Commands) -> None:
    command = _add(
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
    _add_workers(command)


def _run_compose(arguments: Arguments) -> str:
    from shard_tools.compose import compose

    return compose(
        arguments.out,
        backgrounds=arguments.backgrounds,
        foregrounds=arguments.foregrounds,
        size=arguments.size,
        workers=arguments.workers,
        depth=arguments.depth,
    )


def _add_build(commands: Commands) -> None:
    command = _add(
        commands,
        "build",
        _run_build,
        summary="pack tuples of images into shards",
        description="Find tuples, split them, shuffle with a seed, and pack them into WebDataset tars with an index "
        "beside each and shards.json last. The same arguments give the same bytes; the same command finishes an "
        "interrupted build.",
        example=BUILD_EXAMPLE,
    )
    command.add_argument("source", type=Path, metavar="SRC", help="tree of images, or a table (.csv, .jsonl, .parquet)")
    command.add_argument("out", metavar="OUT", help="folder or URL (s3://bucket/folder) for shards and shards.json")
    _add_layout(command)

    split = command.add_argument_group("which tuples train and which test")
    split.add_argument(
        "--split",
        choices=("index", "backgrounds", "foregrounds", "fraction", "column"),
        help="by place in the source; by held-out backgrounds or foregrounds; a share of all tuples; as a table's "
        "column `split` says (default: column where there is one, else index)",
    )
    split.add_argument("--train", type=int, metavar="N", help="index: the first N train (default: 3/4 of backgrounds)")
    split.add_argument("--test", type=int, metavar="N", help="index: the N after them test (default: all the rest)")
    split.add_argument("--test-share", type=float, metavar="F", help="share that tests (default: 0.25)")
    split.add_argument(
        "--hold-out", type=_names, default=(), metavar="A,B", help="the backgrounds or foregrounds that test, by name"
    )
    split.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="pack only N training tuples: the same ones every time, and a prefix of any larger N",
    )

    shards = command.add_argument_group("what goes into the shards")
    size = shards.add_mutually_exclusive_group()
    size.add_argument("--shard-size", type=int, metavar="N", help="tuples in a shard (default: 1000)")
    size.add_argument("--shard-bytes", type=_bytes, metavar="B", help="or about this many bytes, such as 64MB")
    shards.add_argument("--seed", type=int, default=0, help="of the shuffle (default: %(default)s)")
    shards.add_argument(
        "--backgrounds",
        choices=("sample", "shared"),
        default="sample",
        help="each tuple with its own background, readable by anything; or each background once, in shards of its own "
        "(default: %(default)s)",
    )
    shards.add_argument("--size", type=int, metavar="S", help="encode anew at S × S pixels (default: bytes unchanged)")
    shards.add_argument("--quality", type=int, metavar="Q", help="of JPEGs with --size (default: 92); masks become PNG")

    checks = command.add_argument_group("what is checked")
    checks.add_argument(
        "--check",
        choices=("none", "header", "decode"),
        default="header",
        help="look at nothing; at headers and ends of files; or decode every image (default: %(default)s)",
    )
    checks.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="a missing or unreadable file: stop with a list, or leave the tuple out and count it (default: fail)",
    )

    where = command.add_argument_group("where it runs")
    _add_workers(command)
    where.add_argument("--dask", metavar="ADDRESS", help="on a Dask cluster, such as tcp://host:8786")
    where.add_argument(
        "--part", type=_part, metavar="I/N", help="only the I-th of N parts; `shard-tools merge OUT` when all are there"
    )


def _run_build(arguments: Arguments) -> str:
    from shard_tools.build import Executor, Part, build
    from shard_tools.build_plan import BuildOptions
    from shard_tools.cluster import run_on_dask
    from shard_tools.split import SplitRule
    from shard_tools.workers import run_tasks

    execute: Executor = (
        partial(run_on_dask, address=arguments.dask)
        if arguments.dask
        else partial(run_tasks, workers=arguments.workers)
    )
    options = BuildOptions(
        layout=arguments.layout,
        split=SplitRule(
            by=arguments.split,
            train=arguments.train,
            test=arguments.test,
            test_share=arguments.test_share,
            hold_out=arguments.hold_out,
        ),
        limit=arguments.limit,
        shard_size=arguments.shard_size,
        shard_bytes=arguments.shard_bytes,
        seed=arguments.seed,
        check=arguments.check,
        on_bad=arguments.on_bad,
        backgrounds=arguments.backgrounds,
        size=arguments.size,
        quality=arguments.quality,
    )
    part = Part(*arguments.part) if arguments.part else None
    return build(arguments.source, arguments.out, options, execute, part)


def _add_merge(commands: Commands) -> None:
    command = _add(
        commands,
        "merge",
        lambda arguments: _merge(arguments.out),
        summary="finish a build that was made in parts",
        description="Write shards.json for a build whose parts (`build --part I/N`) are all there.",
        example=MERGE_EXAMPLE,
    )
    command.add_argument("out", metavar="OUT", help="the OUT of the parts")


def _merge(out: str) -> str:
    from shard_tools.build import merge

    return merge(out)


def _add_locate(commands: Commands) -> None:
    command = _add(
        commands,
        "locate",
        _run_locate,
        summary="the files of the tuple with a number",
        description="Say which background, foreground and placement the tuple INDEX (from 1 on) is, and its files.",
        example=LOCATE_EXAMPLE,
    )
    command.add_argument("source", type=Path, metavar="SRC", help="tree of images, or a table")
    command.add_argument("index", type=int, metavar="INDEX", help="1 is the first tuple")
    _add_layout(command)


def _run_locate(arguments: Arguments) -> str:
    from shard_tools.locate import locate

    return locate(arguments.source, arguments.index, layout=arguments.layout)


def _add_layout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--layout", choices=("nested", "flat", "table"), help="of SRC (default: recognised, and said which and why)"
    )


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]I?)?B?", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of bytes, such as 64MB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: expected I/N, such as 3/8")
    return int(match[1]), int(match[2])


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 0 when all is done, 1 for a user's mistake, 130 for Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    try:
        print(arguments.run(arguments))
    except UserError as error:
        print(f"shard-tools: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shard-tools: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
