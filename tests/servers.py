"""Real servers for shards: nginx, an S3 server process, and a TCP proxy that spoils connections in front of either."""

import http.client
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import fsspec
import pytest

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
START_SECONDS = 60

needs_nginx = pytest.mark.skipif(not Path(NGINX).exists(), reason="nginx is not installed")


class Request(NamedTuple):
    """A line of the access log; `start` and `stop` are the bytes asked for, None for the whole."""

    name: str
    start: int | None
    stop: int | None
    status: int


@dataclass(frozen=True)
class Nginx:
    """A running server; `folder` is what it serves."""

    folder: Path
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[Request]:
        """GET requests that are answered, in the order of their ends."""
        found = []
        for line in self._settled_log().splitlines():
            method, name, span, status = line.split("|")
            if method == "GET":
                limits = re.fullmatch(r"bytes=(\d+)-(\d+)", span)
                start, stop = (int(limits[1]), int(limits[2]) + 1) if limits else (None, None)
                found.append(Request(name.removeprefix("/"), start, stop, int(status)))
        return found

    def _settled_log(self) -> str:
        """The log once it has all that was answered: a line is written only after the answer has gone out."""
        mark = f"/{uuid.uuid4().hex}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        connection.request("OPTIONS", mark)
        connection.getresponse().read()
        connection.close()
        deadline = time.monotonic() + START_SECONDS
        while mark not in (text := self.log.read_text()):
            assert time.monotonic() < deadline, "nginx writes no log"
            time.sleep(0.01)
        return text


@contextmanager
def nginx(folder: Path, workplace: Path, directives: str = "") -> Iterator[Nginx]:
    """nginx that serves `folder` with more `directives` in its location; `workplace` holds its configuration."""
    workplace.mkdir(parents=True, exist_ok=True)
    port = free_port()
    temporary = "\n".join(
        f"  {kind}_temp_path {workplace}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = workplace / "nginx.conf"
    config.write_text(f"""
{"user root;" if _is_root() else ""}
daemon off;
master_process off;
pid {workplace}/pid;
error_log {workplace}/error.log;
events {{}}
http {{
{temporary}
  log_format fields '$request_method|$uri|$http_range|$status';
  access_log {workplace}/access.log fields;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      root {folder};
      {directives}
    }}
  }}
}}
""")
    process = subprocess.Popen([NGINX, "-e", f"{workplace}/error.log", "-c", str(config)])
    with _serving(process, port):
        yield Nginx(folder, port, workplace / "access.log")


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server process without buckets."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with _serving(process, port):
        yield f"http://127.0.0.1:{port}"


def point_to_s3(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let s3:// of this process, and of those that it starts, mean the server at `address`."""
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()


class Fault(NamedTuple):
    """What a connection suffers `after` so many bytes of the server's answers."""

    kind: Literal["cut", "hang", "flip"]
    after: int = 0


class SpoilingProxy:
    """Passes TCP connections on to a port. The first ones suffer `faults`, one each; later ones suffer `always`."""

    def __init__(self, target: int, faults: Sequence[Fault] = (), always: Fault | None = None) -> None:
        self._target = target
        self._faults = list(faults)
        self._always = always
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.connections = 0
        self.spoiled = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "SpoilingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in [self._listening, *self._open]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.connections += 1
                fault = self._faults.pop(0) if self._faults else self._always
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, fault), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, fault: Fault | None) -> None:
        left = fault.after if fault else 0
        with suppress(OSError):
            while data := source.recv(65536):
                if fault and 0 <= left < len(data):
                    self.spoiled.set()
                    if fault.kind == "flip":
                        data = data[:left] + bytes([data[left] ^ 1]) + data[left + 1 :]
                    else:
                        target.sendall(data[:left])
                        if fault.kind == "cut":
                            break
                        return
                left -= len(data)
                target.sendall(data)
            for connection in (source, target):
                connection.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def _serving(process: "subprocess.Popen[bytes]", port: int) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, f"{process.args!r} did not start"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, f"{process.args!r} does not answer"
                time.sleep(0.05)
        yield


def _is_root() -> bool:
    return Path("/proc/self").stat().st_uid == 0
