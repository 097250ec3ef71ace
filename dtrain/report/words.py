"""Counts, shares, times and durations as people read them. Pure functions from numbers to text."""

from datetime import UTC, datetime

NBSP = "\N{NO-BREAK SPACE}"


def utc(seconds: float) -> str:
    """Return a time given in seconds since 1970 as date and time of day, UTC."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s"


def duration(seconds: float) -> str:
    """Return seconds >= 0 in two units at most; below ten seconds with one decimal."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s" if seconds >= 0.05 else f"<0.1{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {second}{NBSP}s"
    hours, minute = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minute}{NBSP}min"


def percent(share: float) -> str:
    """Return a share in [0, 1] in percent; what would round to nothing, or to everything, is said to be none."""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def count(number: int, noun: str) -> str:
    """Return the number with its noun: 1 step, 2 steps, 1 process, 2 processes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}" + ("" if number == 1 else plural)


def times(number: int) -> str:
    """Return once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")
