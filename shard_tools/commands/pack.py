"""The commands that pack a source: build, merge, locate. Arguments in, calls out."""

import re
from argparse import ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path

from shard_tools.commands import Commands, add_command, add_layout, add_workers

BUILD_EXAMPLE = "example: shard-tools build data/photos data/shards --workers 8"
MERGE_EXAMPLE = "example: shard-tools merge data/shards"
LOCATE_EXAMPLE = "example: shard-tools locate data/photos 300001"


def add_build(commands: Commands) -> None:
    """Add `build`."""
    command = add_command(
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
    add_layout(command)

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
    add_workers(command)
    where.add_argument("--dask", metavar="ADDRESS", help="on a Dask cluster, such as tcp://host:8786")
    where.add_argument(
        "--part", type=_part, metavar="I/N", help="only the I-th of N parts; `shard-tools merge OUT` when all are there"
    )


def _run_build(arguments: Namespace) -> str:
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


def add_merge(commands: Commands) -> None:
    """Add `merge`."""
    command = add_command(
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


def add_locate(commands: Commands) -> None:
    """Add `locate`."""
    command = add_command(
        commands,
        "locate",
        _run_locate,
        summary="the files of the tuple with a number",
        description="Say which background, foreground and placement the tuple INDEX (from 1 on) is, and its files.",
        example=LOCATE_EXAMPLE,
    )
    command.add_argument("source", type=Path, metavar="SRC", help="tree of images, or a table")
    command.add_argument("index", type=int, metavar="INDEX", help="1 is the first tuple")
    add_layout(command)


def _run_locate(arguments: Namespace) -> str:
    from shard_tools.locate import locate

    return locate(arguments.source, arguments.index, layout=arguments.layout)


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]I?)?B?", text.upper())
    if match is None:
        raise ArgumentTypeError(f"{text}: expected a number of bytes, such as 64MB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None:
        raise ArgumentTypeError(f"{text}: expected I/N, such as 3/8")
    return int(match[1]), int(match[2])


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ArgumentTypeError("expected names, such as 7,12")
    return names
