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
        self._told = False

    def stop(self, reason: str) -> None:
        """Send SIGTERM, unless that was done before."""
        if self._told:
            self._say(f"{reason}: the launcher has been told already")
            return
        self._told = True
        with suppress(ProcessLookupError):
            self._send(signal.SIGTERM)
        self._say(f"{reason}: SIGTERM sent to the launcher")

    def pass_on(self, number: int) -> None:
        """Do with it what a signal to us asks for: Ctrl-C goes on as it is, any other stops it."""
        if number == signal.SIGINT:
            self._send(number)
        else:
            self.stop(signal.Signals(number).name)
