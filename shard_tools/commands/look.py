"""The commands that look at finished shards: info, ls, stats, preview. Arguments in, calls out."""

from argparse import Namespace
from pathlib import Path

from shard_tools.commands import Commands, add_command, add_location, add_split, add_workers

INFO_EXAMPLE = "example: shard-tools info s3://bucket/shards"
LS_EXAMPLE = "example: shard-tools ls data/shards --split test --long"
STATS_EXAMPLE = "example: shard-tools stats data/shards --out report"
PREVIEW_EXAMPLE = "example: shard-tools preview data/shards --samples 12 --out sheet.png"


def add_info(commands: Commands) -> None:
    """Add `info`."""
    command = add_command(
        commands,
        "info",
        _run_info,
        summary="what a data set holds",
        description="Print splits, shards, images, counts and the arguments that built it; reads the manifest alone.",
        example=INFO_EXAMPLE,
    )
    add_location(command)


def _run_info(arguments: Namespace) -> str:
    from shard_tools.info import info

    return info(arguments.location)


def add_ls(commands: Commands) -> None:
    """Add `ls`."""
    command = add_command(
        commands,
        "ls",
        _run_ls,
        summary="one line a tuple, in packing order",
        description="Print key, split and shard of each tuple, separated by tabs; reads the indexes alone.",
        example=LS_EXAMPLE,
    )
    add_location(command)
    add_split(command)
    command.add_argument("--long", action="store_true", help="also the bytes of each component and the metadata")


def _run_ls(arguments: Namespace) -> None:
    from shard_tools.info import ls, print_lines

    print_lines(ls(arguments.location, split=arguments.split, long=arguments.long))


def add_stats(commands: Commands) -> None:
    """Add `stats`."""
    command = add_command(
        commands,
        "stats",
        _run_stats,
        summary="means, deviations, histograms and sizes of finished shards",
        description="Read every tuple once and write stats.json and stats.png: mean and deviation of each channel (to "
        "normalise with), depth, mask coverage, bytes, image sizes. They are the same for any number of workers.",
        example=STATS_EXAMPLE,
    )
    add_location(command)
    add_split(command)
    command.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="for stats.json and stats.png (default: this folder)"
    )
    add_workers(command)


def _run_stats(arguments: Namespace) -> str:
    from shard_tools.stats_command import stats

    return stats(arguments.location, split=arguments.split, out=arguments.out, workers=arguments.workers)


def add_preview(commands: Commands) -> None:
    """Add `preview`."""
    command = add_command(
        commands,
        "preview",
        _run_preview,
        summary="a contact sheet of some tuples",
        description="Draw bg, fgbg, depth, mask, and the mask over fgbg, of random tuples or of those named.",
        example=PREVIEW_EXAMPLE,
    )
    add_location(command)
    add_split(command)
    command.add_argument(
        "--samples", type=int, default=8, metavar="N", help="random tuples, 1 to 200 (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="another seed, other tuples (default: %(default)s)")
    command.add_argument("--keys", nargs="+", default=[], metavar="KEY", help="these tuples instead, in this order")
    command.add_argument(
        "--out", type=Path, default=Path("preview.png"), metavar="FILE.png", help="(default: %(default)s)"
    )


def _run_preview(arguments: Namespace) -> str:
    from shard_tools.preview import preview

    return preview(
        arguments.location,
        split=arguments.split,
        samples=arguments.samples,
        seed=arguments.seed,
        keys=arguments.keys,
        out=arguments.out,
    )
