"""The commands that keep finished shards whole: verify, index, unpack. Arguments in, calls out."""

import re
from argparse import ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path

from shard_tools.commands import Commands, add_command, add_location, add_split, add_workers
from shard_tools.errors import UserError

VERIFY_EXAMPLE = "example: shard-tools verify data/shards --decode --workers 8"
INDEX_EXAMPLE = "example: shard-tools index data --split 'train=train-*.tar' --split 'test=val-*.tar'"
UNPACK_EXAMPLE = "example: shard-tools unpack data/shards data/photos-again"


def add_verify(commands: Commands) -> None:
    """Add `verify`."""
    command = add_command(
        commands,
        "verify",
        _run_verify,
        summary="check that finished shards are whole",
        description="Check every shard against the manifest: sizes and hashes, the index against the tar, counts, keys "
        "unique over all shards, backgrounds that are referred to. The exit status is 0 when all is well; else a list "
        "names shard and key.",
        example=VERIFY_EXAMPLE,
    )
    add_location(command)
    command.add_argument(
        "--decode", action="store_true", help="decode every image too (slower; finds what was packed damaged)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the whole report as JSON")
    add_workers(command)


def _run_verify(arguments: Namespace) -> str:
    from shard_tools.verify import verify

    return verify(arguments.location, decode=arguments.decode, workers=arguments.workers, json_file=arguments.json)


def add_index(commands: Commands) -> None:
    """Add `index`."""
    command = add_command(
        commands,
        "index",
        _run_index,
        summary="make anybody's tars ready to train on",
        description="Write NAME.idx beside each tar, in the format of DALI's wds2idx: where each member of each sample "
        "begins and how long it is. With --split write shards.json too: WebDataset shards of any origin then train as "
        "they are.",
        example=INDEX_EXAMPLE,
    )
    command.add_argument(
        "shards", nargs="+", metavar="SHARD", help="a tar, or a folder, which means all *.tar in it; paths or URLs"
    )
    command.add_argument(
        "--split",
        action="append",
        default=[],
        type=partial(_pair, "train=train-*.tar"),
        metavar="NAME=PATTERN",
        help="the tars of a split, by their file names, as in 'train=train-*.tar' or 'test=val-{000..003}.tar'; may be "
        "given several times; writes shards.json",
    )
    command.add_argument(
        "--component",
        action="append",
        default=[],
        type=partial(_pair, "depth=d.png"),
        metavar="NAME=MEMBER",
        help="what bg, fgbg, depth or mask is called behind KEY., as in fgbg=input.jpg (default: the name itself and "
        "the suffix of an image)",
    )
    command.add_argument(
        "--force", action="store_true", help="replace an index or a shards.json that says something else"
    )
    add_workers(command)


def _run_index(arguments: Namespace) -> str:
    from shard_tools.adopt import adopt
    from shard_tools.index_command import write_indexes

    components = dict(arguments.component)
    if len(components) < len(arguments.component):
        raise UserError("--component: each of bg, fgbg, depth and mask can be named once")
    if not arguments.split:
        if components:
            raise UserError("--component: only with --split, which says which tars go into shards.json")
        return write_indexes(arguments.shards, force=arguments.force, workers=arguments.workers)
    patterns: dict[str, list[str]] = {}
    for split, pattern in arguments.split:
        patterns.setdefault(split, []).append(pattern)
    return adopt(arguments.shards, patterns, components, force=arguments.force, workers=arguments.workers)


def _pair(example: str, text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", text)
    if match is None:
        raise ArgumentTypeError(f"{text}: expected NAME=…, as in {example}")
    return match[1], match[2]


def add_unpack(commands: Commands) -> None:
    """Add `unpack`."""
    command = add_command(
        commands,
        "unpack",
        _run_unpack,
        summary="write the source tree back from shards, byte for byte",
        description="Write every image back to the path that it was packed from, below OUT. Paths that lead out of OUT "
        "are refused. The same command finishes an interrupted one.",
        example=UNPACK_EXAMPLE,
    )
    add_location(command)
    command.add_argument("out", type=Path, metavar="OUT", help="an empty or new folder")
    add_split(command)
    add_workers(command)


def _run_unpack(arguments: Namespace) -> str:
    from shard_tools.unpack import unpack

    return unpack(arguments.location, arguments.out, split=arguments.split, workers=arguments.workers)
