"""The commands that keep finished shards whole: verify, index, unpack. Arguments in, calls out."""

from argparse import Namespace
from pathlib import Path

from shard_tools.commands import Commands, add_command, add_location, add_split, add_workers

VERIFY_EXAMPLE = "example: shard-tools verify data/shards --decode --workers 8"
INDEX_EXAMPLE = "example: shard-tools index s3://bucket/shards other/train-000000.tar"
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
        summary="write the index beside anybody's tars",
        description="Write NAME.idx beside each tar, in the format of DALI's wds2idx: where each member of each sample "
        "begins and how long it is. For WebDataset shards of any origin.",
        example=INDEX_EXAMPLE,
    )
    command.add_argument(
        "shards", nargs="+", metavar="SHARD", help="a tar, or a folder, which means all *.tar in it; paths or URLs"
    )
    command.add_argument("--force", action="store_true", help="replace an index that says something else")
    add_workers(command)


def _run_index(arguments: Namespace) -> str:
    from shard_tools.index_command import write_indexes

    return write_indexes(arguments.shards, force=arguments.force, workers=arguments.workers)


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
