"""Progress of long work: a live bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

LINE_INTERVAL_SECONDS = 10.0


class Progress:
    """Counts `unit`s towards `total` and shows rate and time left on `stream` (standard error by default)."""

    def __init__(
        self, description: str, *, total: int, unit: str, initial: int = 0, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._last_line = time.monotonic()
        self._total, self._count, self._last_count = total, initial, initial
        self._bar = tqdm(
            desc=description,
            total=total,
            initial=initial,
            unit=f" {unit}",
            file=self._stream if self._live else _Nowhere(),
            dynamic_ncols=True,
            smoothing=0.1,
            mininterval=0.1,
            leave=True,
        )

    def show(self, fields: Mapping[str, str]) -> None:
        """Show `fields` behind the bar from now on."""
        self._bar.set_postfix(fields, refresh=False)

    def advance(self, count: int) -> None:
        """Count `count` more units."""
        self._bar.update(count)
        self._count += count
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
            elapsed = max(self._bar.format_dict["elapsed"], 1e-9)
            self._print_line((self._count - self._bar.initial) / elapsed)
        self._bar.close()

    def _print_line(self, rate: float) -> None:
        done, total, unit = self._count, self._total, self._bar.unit.strip()
        left = f", {tqdm.format_interval((total - done) / rate)} left" if 0 < done < total and rate > 0 else ""
        postfix = f" | {self._bar.postfix}" if self._bar.postfix else ""
        share = f"{100 * done / total:.0f}%" if total else "done"
        print(
            f"{self._bar.desc}: {done:,}/{total:,} {unit} ({share}), {rate:,.1f} {unit}/s{left}{postfix}",
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


class _Nowhere:
    """A stream that swallows the bar where plain lines are printed instead."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass
