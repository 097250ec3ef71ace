"""Progress of long work: a live bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

LINE_INTERVAL_SECONDS = 10.0


class Progress:
    """Counts `unit`s towards `total` and shows rate and time left on `stream` (standard error by default).

    Where units cost unequal time, as images of several sizes do, the time left is that of the work left: `total_work`
    and `initial_work` are in any unit of their own, and each `advance` says how much it was.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int,
        unit: str,
        initial: int = 0,
        total_work: float | None = None,
        initial_work: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._description, self._unit = description, unit
        self._total, self._initial, self._count = total, initial, initial
        self._work_left = (total if total_work is None else total_work) - (
            initial if initial_work is None else initial_work
        )
        self._work_done = 0.0
        self._began = self._last_line = time.monotonic()
        self._last_count = initial
        self._fields = ""
        self._bar = _Bar(
            desc=description,
            total=total,
            initial=initial,
            unit=f" {unit}",
            file=self._stream,
            disable=not self._live,
            dynamic_ncols=True,
            smoothing=0.1,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}, {rate_fmt}{postfix}]",
        )

    def show(self, fields: Mapping[str, str]) -> None:
        """Show `fields` behind the bar from now on."""
        self._fields = ", ".join(f"{name}={value}" for name, value in fields.items())
        self._bar.set_postfix_str(self._fields, refresh=False)

    def advance(self, count: int, work: float | None = None) -> None:
        """Count `count` more units, which were `work`."""
        self._count += count
        self._work_done += count if work is None else work
        self._bar.left = self._time_left()
        self._bar.update(count)
        now = time.monotonic()
        if not self._live and now - self._last_line >= LINE_INTERVAL_SECONDS:
            self._print_line((self._count - self._last_count) / (now - self._last_line))
            self._last_line, self._last_count = now, self._count

    def note(self, message: str) -> None:
        """Print a line without breaking the bar."""
        if self._live:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Finish the display; without a terminal, print a last line with the rate of the whole."""
        if not self._live:
            self._print_line((self._count - self._initial) / max(time.monotonic() - self._began, 1e-9))
        self._bar.close()

    def _time_left(self) -> str:
        if not self._work_done:
            return "?"
        seconds = (self._work_left - self._work_done) * (time.monotonic() - self._began) / self._work_done
        return tqdm.format_interval(max(seconds, 0))

    def _print_line(self, rate: float) -> None:
        share = f"{100 * self._count / self._total:.0f}%" if self._total else "done"
        left = f", {self._time_left()} left" if self._initial < self._count < self._total else ""
        fields = f" | {self._fields}" if self._fields else ""
        print(
            f"{self._description}: {self._count:,}/{self._total:,} {self._unit} ({share}), "
            f"{rate:,.1f} {self._unit}/s{left}{fields}",
            file=self._stream,
            flush=True,
        )


@contextmanager
def progress(description: str, *, total: int, unit: str) -> Iterator[Progress]:
    """A `Progress` that is closed at the end of the block."""
    shown = Progress(description, total=total, unit=unit)
    try:
        yield shown
    finally:
        shown.close()


class _Bar(tqdm):  # type: ignore[type-arg] # subscriptable for type checkers only
    """A bar with a time left of our own reckoning."""

    left = "?"

    @property
    def format_dict(self) -> Any:
        return {**super().format_dict, "left": self.left}
