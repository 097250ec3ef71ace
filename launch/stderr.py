"""Lines on stderr that can't harm who writes them."""

import os
from contextlib import suppress

LONGEST = 1000


def write_line(program: str, message: str) -> None:
    """`PROGRAM: MESSAGE`, cut to LONGEST characters, in one write; what can't be written is lost, and nothing else."""
    line = f"{program}: {' '.join(message.split())[:LONGEST]}\n"
    with suppress(OSError):
        os.write(2, line.encode(errors="backslashreplace"))
