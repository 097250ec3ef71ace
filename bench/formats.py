"""The peers that have a format of their own: which of them are installed, and the same tuples in their formats."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from bench.dataset import encoded_samples
from bench.turns import Epoch, say

MODULES = {"Streaming": "bench.mosaic", "litdata": "bench.lit"}


class Format(Protocol):
    """What a module for such a peer has."""

    def tidy(self) -> None:
        """Before anything else is begun."""

    def write(self, samples: list[dict[str, bytes]], out: Path) -> None:
        """The samples, by component, in its format."""

    def epochs(self, folder: Path, decoder: str, workers: int) -> Epoch:
        """Reads and decodes one epoch after the other."""

    def resume(self, folder: str, share: float) -> dict[str, float]:
        """Seconds from a saved state at a `share` of the epoch to the first batch."""


def installed() -> dict[str, Format]:
    """Those that can be imported here; says which can't."""
    found = {}
    for name, module in MODULES.items():
        try:
            found[name] = cast("Format", import_module(module))
        except ImportError as error:
            say(f"{name} is left out: {error} (`make bench` installs it in an environment of its own)")
    return found


def converted(shards: Path, name: str, peer: Format) -> Path:
    """The training tuples in the format of a peer, beside the shards; kept between calls."""
    out = shards.with_name(f"{shards.name}-{name.lower()}")
    if not out.exists():
        partial = out.with_name(f"{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        peer.write(list(encoded_samples(shards)), partial)
        partial.rename(out)
    return out
