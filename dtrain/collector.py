"""Keeps the garbage collector from looking for garbage among imported modules: half a second of a start.

Call `rest` before the imports, and `work` when everything is there.
"""

import gc


def rest() -> None:
    """No collections until `work`."""
    gc.disable()


def work() -> None:
    """Collections again, which leave alone what is there now."""
    gc.freeze()
    gc.enable()
