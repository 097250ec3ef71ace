"""What the clouds' metadata services say of the end of the machine that asks. Never acts on it, never confirms it.

Not every announcement is a notice. Left out are those that come hours or days ahead, or that a training survives, since
a run that is stopped for them stands still until they come true: AWS's rebalance recommendations, GCP's maintenance
events, Azure's Freeze, Reboot and Redeploy.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from launch.metadata import Answer, MetadataError, MetadataService


class Cloud(Protocol):
    """A cloud, as seen from one of its machines. Its methods raise MetadataError, or what odd data makes them raise."""

    name: str

    def identify(self) -> None:
        """Return if the service is this cloud's, raise if it is not."""

    def notice(self) -> str | None:
        """What is going to happen to this machine, and when; None as long as nothing is announced."""


class Aws:
    """Spot interruption notices, two minutes ahead, of EC2's instance metadata service, version 2.

    Source: docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    name = "aws"

    def __init__(self, service: MetadataService) -> None:
        """Asks nothing yet."""
        self._service = service
        self._token: str | None = None

    def identify(self) -> None:
        """One poll."""
        self.notice()

    def notice(self) -> str | None:
        """`spot/instance-action`, which is absent (404) until the machine is to be stopped."""
        answer = self._instance_action()
        if answer.status == 401:  # the token has expired
            self._token = None
            answer = self._instance_action()
        if answer.status == 404:
            return None
        document = _json_object(answer)
        action, when = document["action"], document["time"]
        if action not in {"terminate", "stop", "hibernate"}:
            raise MetadataError(f"{answer.asked}: an unknown action, {action!r}")
        return f"spot instance-action {action!r}, at {when}"

    def _instance_action(self) -> Answer:
        if self._token is None:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            answer = self._service.ask("PUT", "/latest/api/token", ttl)
            if not answer.body().isascii() or not answer.body().isprintable():
                raise MetadataError(f"{answer.asked}: not a token")
            self._token = answer.body()
        token = {"X-aws-ec2-metadata-token": self._token}
        return self._service.ask("GET", "/latest/meta-data/spot/instance-action", token)


class Gcp:
    """Preemption of Compute Engine's spot and preemptible machines, up to 30 s ahead, or 120 s if they were made so.

    Source: docs.cloud.google.com/compute/docs/instances/create-use-spot
    """

    name = "gcp"

    def __init__(self, service: MetadataService) -> None:
        """Asks nothing yet."""
        self._service = service

    def identify(self) -> None:
        """One poll."""
        self.notice()

    def notice(self) -> str | None:
        """`instance/preempted`, FALSE or TRUE."""
        answer = self._service.ask("GET", "/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        preempted = answer.body().strip()
        if answer.headers.get("Metadata-Flavor") != "Google" or preempted not in {"TRUE", "FALSE"}:
            raise MetadataError(f"{answer.asked}: neither TRUE nor FALSE from Google")
        return "preempted, at once or after the notice time of this machine" if preempted == "TRUE" else None


class Azure:
    """Preempt (spot, 30 s ahead) and Terminate (scale sets, 5 to 15 minutes ahead) of the scheduled events.

    Events of all machines of a scale set are delivered to each of them. Confirming one would let it begin at once for
    all that it names, so none is confirmed.
    Source: learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
    """

    name = "azure"

    FIRST_SECONDS = 120.0
    """The first request for events switches them on, which may take two minutes."""

    def __init__(self, service: MetadataService) -> None:
        """Asks nothing yet."""
        self._service = service
        self._events = replace(service, seconds=self.FIRST_SECONDS)
        self._machine = ""

    def identify(self) -> None:
        """The name of this machine, as events have it."""
        answer = self._service.ask("GET", "/metadata/instance/compute?api-version=2021-02-01", {"Metadata": "true"})
        self._machine = str(_json_object(answer)["name"])

    def notice(self) -> str | None:
        """The first event that takes this machine away."""
        if not self._machine:
            self.identify()
        answer = self._events.ask("GET", "/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
        events = _json_object(answer)["Events"]
        self._events = self._service
        for event in events:
            mine = self._machine.casefold() in {name.casefold() for name in event["Resources"]}
            if mine and event["EventType"] in {"Preempt", "Terminate"}:
                when = f"not before {event['NotBefore']}" if event.get("NotBefore") else "begun"
                return f"{event['EventType']} of {self._machine}, {when}"
        return None


CLOUDS: dict[str, Callable[[MetadataService], Cloud]] = {cloud.name: cloud for cloud in (Aws, Gcp, Azure)}


def find_cloud(service: MetadataService) -> Cloud:
    """The cloud whose service answers, each asked for a second; raises MetadataError if none does, and says why."""
    reasons = []
    for make in CLOUDS.values():
        try:
            make(replace(service, seconds=1.0)).identify()
        except Exception as error:
            reasons.append(describe(error))
        else:
            return make(service)
    raise MetadataError("; ".join(dict.fromkeys(reasons)))


def describe(error: Exception) -> str:
    """An error in one line; those that stem from odd data need their type to be understood."""
    return str(error) if isinstance(error, MetadataError) else f"odd data, {error!r}"


def _json_object(answer: Answer) -> dict[str, Any]:
    try:
        document = json.loads(answer.body())
    except ValueError as error:
        raise MetadataError(f"{answer.asked}: not JSON") from error
    if not isinstance(document, dict):
        raise MetadataError(f"{answer.asked}: not a JSON object")
    return document
