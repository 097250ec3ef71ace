"""The command `shard-tools`: arguments in, messages out; the work is done by the modules that `commands` calls."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from shard_tools.commands import keep, look, make, pack
from shard_tools.errors import UserError

COMMANDS = (
    make.add_sample,
    make.add_compose,
    pack.add_locate,
    pack.add_build,
    pack.add_merge,
    keep.add_verify,
    keep.add_index,
    keep.add_unpack,
    look.add_info,
    look.add_ls,
    look.add_stats,
    look.add_preview,
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="shard-tools",
        description="From bg / fgbg / depth / mask images to WebDataset shards, and what one does with them.",
        epilog=pack.BUILD_EXAMPLE,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 0 when all is done, 1 for a user's mistake, 130 for Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no linear algebra here, so none of its threads in any worker
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # what batch systems send
    try:
        said = arguments.run(arguments)
    except UserError as error:
        print(f"shard-tools: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shard-tools: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    try:
        print(*filter(None, [said]), flush=True, end="\n" if said else "")
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more at its end
        print(f"shard-tools: done, but the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
