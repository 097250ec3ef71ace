"""One HTML file that tells of a run: from the run folder to RUN/report.html. Changes nothing else there."""

from dataclasses import replace
from pathlib import Path

from dtrain.report.goodput_words import describe_goodput
from dtrain.report.page import render_page
from dtrain.report.pictures import make_album
from dtrain.report.run_data import read_goodput, read_run
from dtrain.run_folder import RunFolder
from shard_tools.atomic import write_atomically


def write_report(run: Path) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path; the run may still be going on.

    The file needs no network, no script and no other file, and stays under about 5 MB. What cannot be read
    is left out, and the page says so. Raises UserError if `run` is no folder, or not that of a run.
    """
    record = read_run(run)
    album = make_album(record.panels)
    notes = [*record.notes, *(f"panels/{name}: not a readable picture, left out" for name in album.unreadable)]
    path = RunFolder(run).report
    write_atomically(path, render_page(replace(record, notes=notes), album))
    return path


def goodput_line(run: Path) -> str:
    """Return one line for the terminal on where the time of the run in the folder `run` went, from its events alone."""
    return describe_goodput(read_goodput(run))
