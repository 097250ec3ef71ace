"""From shards to weights: order, read, decode, model, loss, loop, checkpoint, report. Never reads loose files.

`import dtrain; network = dtrain.load("runs/my"); result = network.predict(bg, fgbg)` uses what was trained.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrain.api import Network, load
    from dtrain.inference import Result

__all__ = ["Network", "Result", "load"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is used: it brings torch, which --help should not wait for."""
    if name not in __all__:
        raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
    from dtrain import api

    return getattr(api, name)
