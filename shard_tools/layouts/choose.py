"""Which layout a source has: the one the user names, or the one that it looks like. Scans nothing by itself."""

import re
from pathlib import Path
from typing import Any

from shard_tools.errors import UserError
from shard_tools.layouts import Findings, Layout, flat, nested, table

_MODULES: tuple[Any, ...] = (nested, flat, table)
LAYOUTS: dict[str, Layout] = {module.NAME: module for module in _MODULES}


def choose_layout(source: Path, name: str | None) -> tuple[Layout, str | None]:
    """The layout called `name`, or else the one that `source` looks like, and then why it does.

    Raises UserError where there is no such source, or it looks like none or several.
    """
    try:
        there = source.exists()
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    if not there and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(source)):
        raise UserError(f"{source}: a source has to be on this machine or a disk that it sees; copy it, or mount it")
    if not there:
        raise UserError(f"{source}: no such folder or table; expected {_expected()}")
    if name is not None:
        return LAYOUTS[name], None
    reasons = {layout: layout.recognise(source) for layout in LAYOUTS.values()}
    recognised = {layout: reason for layout, reason in reasons.items() if reason}
    if not recognised:
        raise UserError(f"{source}: no tuples found; expected {_expected()}")
    if len(recognised) > 1:
        options = "; or ".join(f"--layout {layout.NAME} ({reason})" for layout, reason in recognised.items())
        raise UserError(f"{source}: looks like several layouts; say which is meant: {options}")
    [(layout, reason)] = recognised.items()
    return layout, reason


def find_tuples(source: Path, layout: str | None) -> tuple[Findings, str | None]:
    """Scan `source` by the layout called `layout` or by the one that is recognised, and then why it was."""
    chosen, reason = choose_layout(source, layout)
    return chosen.scan(source), reason


def _expected() -> str:
    return ", or ".join(layout.EXPECTED for layout in LAYOUTS.values())
