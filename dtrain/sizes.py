"""The sides of images that the network takes and is judged at. Imports nothing heavy, to refuse a wrong one at once."""

from shard_tools.errors import UserError

SIZE_DIVISOR = 8
"""Three 2×2 poolings."""


def check_size(size: int | None) -> None:
    """UserError unless `size`, the value of --size, is a side that the network can take; None is left to a default."""
    if size is not None and (size < SIZE_DIVISOR or size % SIZE_DIVISOR):
        raise UserError(f"--size {size}: expected a multiple of {SIZE_DIVISOR}")


def check_judge_at(side: int | None) -> None:
    """UserError unless `side`, the value of --judge-at, is one that truth can have; None is left to a default."""
    if side is not None and side < SIZE_DIVISOR:
        raise UserError(f"--judge-at {side}: expected a side of {SIZE_DIVISOR} pixels or more")
