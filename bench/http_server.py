"""An HTTP server in a process of its own that serves a folder at a limited rate in all, with ranges.

    python -m bench.http_server FOLDER --bytes-per-second 100e6

Prints its URL on the first line. Says under /.sent how many bytes it has sent. Knows nothing of shards.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE_BYTES = 128 * 2**10
SENT = "/.sent"


class TokenBucket:
    """Lets so many bytes a second pass, of all who ask together; what is not used is kept for `burst` seconds."""

    def __init__(self, rate: float, burst: float = 0.02) -> None:
        self._rate, self._burst = rate, burst
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.passed = 0

    def take(self, count: int) -> None:
        """Wait until `count` bytes may pass."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - self._burst) + count / self._rate
            self.passed += count
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files in one folder, whole or one range."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a small answer waits 40 ms for the client's acknowledgement of its head
    folder: Path
    bucket: TokenBucket

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        if self.path == SENT:
            content = json.dumps(self.bucket.passed).encode()
            self._head(200, len(content))
            self.wfile.write(content)
        else:
            self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        if path.parent != self.folder or not path.is_file():
            self._head(404, 0)
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, stop = 0, size
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, stop = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
                if start >= size:
                    self._head(416, 0, f"bytes */{size}")
                    return
                self._head(206, stop - start, f"bytes {start}-{stop - 1}/{size}")
            else:
                self._head(200, size)
            while with_body and start < stop:
                count = min(PIECE_BYTES, stop - start)
                self.bucket.take(count)
                self.connection.sendfile(file, start, count)
                start += count

    def _head(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing: the client says what went wrong."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str

    def sent(self) -> int:
        """Bytes of files that it has sent so far."""
        with urllib.request.urlopen(self.url + SENT, timeout=10) as answer:
            return int(json.load(answer))


@contextmanager
def serving(folder: Path, bytes_per_second: float) -> Iterator[Server]:
    """A server process for `folder`, ended after the block."""
    command = [sys.executable, "-m", "bench.http_server", str(folder), "--bytes-per-second", str(bytes_per_second)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes-per-second", type=float, default=100e6, help="in all (default: %(default)s)")
    arguments = parser.parse_args()
    Handler.folder, Handler.bucket = arguments.folder.resolve(), TokenBucket(arguments.bytes_per_second)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
