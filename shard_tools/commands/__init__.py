"""What the commands of `shard-tools` share: how one is added, and arguments that several take. Does no work."""

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any

Commands = Any
"""argparse's collection of commands, which has no public type."""

Run = Callable[[Namespace], str | None]
"""Does what a command's arguments say; returns what is to be printed."""


def add_command(
    commands: Commands, name: str, run: Run, *, summary: str, description: str, example: str
) -> ArgumentParser:
    """Add a command that `run` does; its help shows the example."""
    command: ArgumentParser = commands.add_parser(name, help=summary, description=description, epilog=example)
    command.set_defaults(run=run)
    return command


def add_workers(command: ArgumentParser) -> None:
    """--workers N."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command.add_argument(
        "--workers", type=_positive, default=cores, metavar="N", help="processes (default: %(default)s)"
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: expected 1 or more")
    return int(text)


def add_location(command: ArgumentParser) -> None:
    """LOCATION, of finished shards."""
    command.add_argument("location", metavar="LOCATION", help="path or URL of the shards, or of their shards.json")


def add_split(command: ArgumentParser) -> None:
    """--split NAME."""
    command.add_argument("--split", metavar="NAME", help="this split alone (default: all)")


def add_layout(command: ArgumentParser) -> None:
    """--layout."""
    command.add_argument(
        "--layout", choices=("nested", "flat", "table"), help="of SRC (default: recognised, and said which and why)"
    )
