"""Plays the metadata services of AWS, GCP and Azure, with their status codes, as their documentation describes them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

LIMIT_SECONDS = 60


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Metadata(ThreadingHTTPServer):
    """The metadata service of `cloud`, unless it has a `fault`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, cloud: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.cloud = cloud
        self.fault = ""
        self.requests: list[str] = []
        self.tokens: list[str] = []
        self.valid_tokens: set[str] = set()
        self.instance_action: str | None = None
        self.preempted = "FALSE"
        self.events: list[dict[str, Any]] = []
        self.first_events_after = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def give_notice(self) -> None:
        """Announce the end of this machine, whatever the cloud."""
        self.instance_action = '{"action": "terminate", "time": "2031-09-18T08:22:00Z"}'
        self.preempted = "TRUE"
        self.events = [event("Preempt", "trainer_3")]

    def wait_for_requests(self, more: int) -> None:
        wanted = len(self.requests) + more
        wait_until(lambda: len(self.requests) >= wanted, "the service is not asked")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are no news."""


def event(kind: str, *machines: str, status: str = "Scheduled") -> dict[str, Any]:
    return {
        "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(machines),
        "EventStatus": status,
        "NotBefore": "Thu, 18 Sep 2031 18:29:47 GMT" if status == "Scheduled" else "",
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }


class Handler(BaseHTTPRequestHandler):
    """A request to `Metadata`."""

    def log_message(self, format: str, *args: Any) -> None:
        """The requests are in `Metadata.requests`."""

    server: Metadata

    def do_GET(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.fault:
            self._fail(self.server.fault)
        elif "X-Forwarded-For" in self.headers:
            self._send(403)
        else:
            {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[self.server.cloud]()

    def _fail(self, fault: str) -> None:
        match fault:
            case "hang":
                time.sleep(LIMIT_SECONDS)
            case "drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.02)
            case "not http":
                self.wfile.write(b"\x00\xff" * 100)
            case "cut":
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"action": ')
            case "redirect":
                self._send(302, location=f"{self.server.url}/elsewhere")
            case status if status.isdigit():
                self._send(int(status), "try again")
            case text:
                self._send(200, text.removeprefix("text:"))

    def _send(self, status: int, text: str = "", **headers: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _aws(self) -> None:
        server = self.server
        if self.command == "PUT":
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if self.path != "/latest/api/token":
                self._send(403)
            elif not seconds.isdigit() or not 1 <= int(seconds) <= 21600:
                self._send(400)
            else:
                server.tokens.append(f"token-{len(server.tokens)}==")
                server.valid_tokens.add(server.tokens[-1])
                self._send(200, server.tokens[-1])
        elif self.headers.get("X-aws-ec2-metadata-token") not in server.valid_tokens:
            self._send(401)
        elif self.path == "/latest/meta-data/spot/instance-action" and server.instance_action is not None:
            self._send(200, server.instance_action)
        else:
            self._send(404)

    def _gcp(self) -> None:
        google = {"Metadata_Flavor": "Google"}
        if self.headers.get("Metadata-Flavor") != "Google":
            self._send(403, **google)
        elif self.command == "GET" and self.path == "/computeMetadata/v1/instance/preempted":
            self._send(200, self.server.preempted, **google)
        else:
            self._send(404, **google)

    def _azure(self) -> None:
        parts = urlsplit(self.path)
        versions = parse_qs(parts.query).get("api-version")
        known = {"/metadata/instance/compute": "2021-02-01", "/metadata/scheduledevents": "2020-07-01"}
        if self.headers.get("Metadata") != "true":
            self._send(400, '{"error": "Bad request. Required metadata header not specified"}')
        elif self.command != "GET":
            self._send(405)
        elif parts.path not in known:
            self._send(404)
        elif versions != [known[parts.path]]:
            self._send(400, '{"error": "Bad request. api-version is invalid or was not specified in the request."}')
        elif parts.path == "/metadata/instance/compute":
            self._send(200, json.dumps({"azEnvironment": "AzurePublicCloud", "name": "Trainer_3", "vmId": "02aab8a4"}))
        else:
            time.sleep(self.server.first_events_after)
            self.server.first_events_after = 0.0
            self._send(200, json.dumps({"DocumentIncarnation": 1, "Events": self.server.events}))


@contextmanager
def metadata(cloud: str, port: int = 0) -> Iterator[Metadata]:
    with Metadata(cloud, port) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
