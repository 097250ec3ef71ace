"""A launcher that is told to stop once, however often it is said here: a second signal may disturb its leaving."""

import signal
from collections.abc import Callable
from contextlib import suppress


class Launcher:
    """Whoever `send` reaches."""

    def __init__(self, send: Callable[[int], None], say: Callable[[str], None]) -> None:
        """`send` gets the number of a signal, `say` a line for people."""
        self._send = send
        self._say = say
        self.told = False

    def stop(self, reason: str) -> None:
        """Send SIGTERM, unless that was done before."""
        if self.told:
            self._say(f"{reason}: the launcher has been told already")
            return
        self.told = True
        with suppress(ProcessLookupError):
            self._send(signal.SIGTERM)
        self._say(f"{reason}: SIGTERM sent to the launcher")
