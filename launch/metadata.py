"""One bounded request to a cloud's metadata service. Never goes through a proxy, follows no redirect, never retries."""

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage
from threading import Timer
from urllib.parse import urlsplit

LARGEST_BYTES = 1 << 20


class MetadataError(Exception):
    """The service gave no answer that can be used; the message says what came instead."""


@dataclass(frozen=True)
class Answer:
    """What the service sent back, whatever the status."""

    asked: str
    status: int
    headers: HTTPMessage
    text: str

    def body(self) -> str:
        """The text of an answer with status 200; raises MetadataError for any other."""
        if self.status != 200:
            raise MetadataError(f"{self.asked}: HTTP status {self.status}")
        return self.text


@dataclass(frozen=True)
class MetadataService:
    """The service at `url`, http://HOST[:PORT]; a whole request, from connecting to the last byte, gets `seconds`."""

    url: str
    seconds: float = 5.0

    def ask(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        """Ask once; raises MetadataError if no whole answer comes in time, or none that is HTTP."""
        # http.client takes no proxy from the environment, which could not reach a link-local address.
        parts = urlsplit(self.url)
        connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=self.seconds)
        deadline = time.monotonic() + self.seconds
        try:
            connection.connect()
            cutter = Timer(max(deadline - time.monotonic(), 0), _cut, (connection.sock,))
            cutter.daemon = True
            cutter.start()
            try:
                connection.request(method, path, headers=headers)
                response = connection.getresponse()
                body = response.read(LARGEST_BYTES)
                if time.monotonic() >= deadline:
                    raise TimeoutError
            finally:
                cutter.cancel()
        except (OSError, HTTPException) as error:
            late = time.monotonic() >= deadline
            why = f"no answer within {self.seconds:g} s" if late else getattr(error, "strerror", None) or repr(error)
            raise MetadataError(why) from error
        finally:
            connection.close()
        return Answer(f"{method} {path}", response.status, response.headers, body.decode(errors="replace"))


def _cut(connected: socket.socket) -> None:
    """End a connection whose time is up. A socket's own timeout begins anew with every byte that comes."""
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
