"""At what size predictions may be judged. Imports nothing heavy, so that a wrong one is refused at once."""

from dtrain.sizes import SIZE_DIVISOR
from shard_tools.errors import UserError


def check_judge_at(side: int | None) -> None:
    """UserError unless `side`, the value of --judge-at, is one that truth can have; None is left to a default."""
    if side is not None and side < SIZE_DIVISOR:
        raise UserError(f"--judge-at {side}: expected a side of {SIZE_DIVISOR} pixels or more")
