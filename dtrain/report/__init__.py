"""One HTML file that tells of a run, or of several side by side. Reads run folders; changes nothing else there."""

from collections.abc import Sequence
from pathlib import Path

from dtrain.report.album import make_album, make_shared_album
from dtrain.report.comparison import read_runs
from dtrain.report.comparison_page import render_comparison
from dtrain.report.goodput_words import describe_goodput
from dtrain.report.page import render_page
from dtrain.report.run_data import read_goodput, read_run
from dtrain.run_folder import RunFolder
from shard_tools.atomic import write_atomically
from shard_tools.errors import UserError


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or the comparison of several, whole or not at all, and return its path.

    Without `out` it is RUN/report.html or, of several runs, comparison.html in the current folder. Runs may still be
    going on. The file needs no network, no script and no other file, and stays under about 5 MB. What cannot be read
    is left out, and the page says so. Raises UserError if one of `runs`, at least one, is no folder or not that of a
    run, or is given twice, and if `out` can't be written.
    """
    if len(runs) == 1:
        run = read_run(runs[0])
        page, path = render_page(run, make_album(run)), out or RunFolder(runs[0]).report
    else:
        compared = read_runs(runs)
        page, path = render_comparison(compared, make_shared_album(compared)), out or Path("comparison.html")
    try:
        write_atomically(path, page)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a place for an HTML file (--out)") from error
    return path


def goodput_line(run: Path) -> str:
    """Return one line for the terminal on where the time of the run in the folder `run` went, from its events alone."""
    return describe_goodput(read_goodput(run))
