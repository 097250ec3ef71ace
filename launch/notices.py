"""Waits for the cloud's first notice that this machine is taken away, prints it and ends. Does nothing about it.

    python -m launch.notices

asks the machine's metadata service until there is a notice. Whatever goes wrong is said on stderr, once for each
outage, and asked again: only a notice ends it. `launch.watch` runs it beside a command.
"""

import argparse
import math
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from launch.stderr import write_line

if TYPE_CHECKING:
    from launch.clouds import Cloud
    from launch.metadata import MetadataService

LINK_LOCAL = "http://169.254.169.254"
"""Where AWS, GCP and Azure all answer, each on its own machines. An address, so that no name has to be looked up."""

NO_NOTICES = "the command runs on, without notices"

PATIENCE = 30
"""So many requests in a row may fail before it is said, once the service has answered. Asking which cloud this is is
repeated after as many intervals."""


say = partial(write_line, "launch.watch")
"""Its lines come from the command that people run."""


def options_parser() -> argparse.ArgumentParser:
    """The options that say whom to ask, and how often; a parent for other parsers."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--cloud", choices=["auto", "aws", "gcp", "azure"], default="auto", help="default: auto, found by asking"
    )
    parser.add_argument("--every", type=_seconds, metavar="S", default=2.0, help="seconds between requests; default: 2")
    parser.add_argument(
        "--metadata", type=_http_url, metavar="URL", default=LINK_LOCAL, help=f"the service; default: {LINK_LOCAL}"
    )
    return parser


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: expected seconds, more than 0")


def _http_url(text: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(text)
        if parts.scheme == "http" and parts.hostname and parts.port != 0 and not parts.path.strip("/") + parts.query:
            return text
    raise argparse.ArgumentTypeError(f"{text}: expected http://HOST[:PORT]")


def main() -> None:
    """Run the command line."""
    description = "Waits for the notice that this machine is taken away, prints it and ends."
    parser = argparse.ArgumentParser(
        prog="python -m launch.notices", parents=[options_parser()], description=description
    )
    options = parser.parse_args()
    print(first_notice(options.cloud, options.metadata, options.every))


def first_notice(name: str, url: str, every: float) -> str:
    """Ask the cloud called `name` (`auto`: the one that answers) at `url` until it gives notice.

    Between two requests are `every` seconds.
    """
    from launch.clouds import CLOUDS, describe
    from launch.metadata import MetadataService

    service = MetadataService(url)
    cloud = _find(service, every) if name == "auto" else CLOUDS[name](service)
    failed, patience = 0, 1
    while True:
        try:
            notice = cloud.notice()
        except Exception as error:
            failed += 1
            if failed == patience:
                say(f"{cloud.name}: no usable answer from {url} ({describe(error)}); {NO_NOTICES}; still asking")
        else:
            if notice is not None:
                return f"{cloud.name}: {notice}"
            if failed >= patience or patience == 1:
                say(f"{cloud.name}: asking {url} for notices every {every:g} s")
            failed, patience = 0, PATIENCE
        time.sleep(every)


def _find(service: "MetadataService", every: float) -> "Cloud":
    """The cloud of this machine; waits until there is one."""
    from launch.clouds import find_cloud
    from launch.metadata import MetadataError

    pause = PATIENCE * every
    said = False
    while True:
        try:
            return find_cloud(service)
        except MetadataError as error:
            if not said:
                say(
                    f"no cloud's metadata service found at {service.url} ({error}); {NO_NOTICES}; "
                    f"asking again every {pause:g} s"
                )
            said = True
        time.sleep(pause)


if __name__ == "__main__":
    main()
