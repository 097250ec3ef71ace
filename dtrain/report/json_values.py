"""Takes numbers out of parsed JSON; what is none becomes None. Never raises."""

import math
from collections.abc import Mapping


def number(value: object) -> float | None:
    """Return a JSON number, which may be NaN or infinite, as float; None for anything else, or if it is too large."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def finite(value: object) -> float | None:
    """Return a JSON number that is finite; None for anything else."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def whole(value: object) -> int | None:
    """Return a finite JSON number without its fraction; None for anything else."""
    found = finite(value)
    return None if found is None else int(found)


def numbers(mapping: Mapping[str, object]) -> dict[str, float]:
    """Return the entries that are numbers."""
    found = {str(key): number(value) for key, value in mapping.items()}
    return {key: value for key, value in found.items() if value is not None}
