"""At which size the network sees an image. Pure arithmetic; never looks at an image."""

import re
from typing import Literal, NamedTuple

from dtrain.sizes import SIZE_DIVISOR
from shard_tools.errors import UserError

_EXPECTED = f"expected a multiple of {SIZE_DIVISOR} for the shorter side, WIDTHxHEIGHT of such, or native"


class Sides(NamedTuple):
    """Sides in pixels."""

    height: int
    width: int


SizeChoice = int | Sides | Literal["native"]
"""The shorter side; or exactly these sides, whatever the image's; or the image's own."""


def parse_size(text: int | str) -> SizeChoice:
    """What `--size` says: 256, 320x240 (width × height) or native. Raises UserError for anything else."""
    if text == "native":
        return "native"
    found = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", str(text))
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or any(side < SIZE_DIVISOR or side % SIZE_DIVISOR for side in sides):
        raise UserError(f"--size {text}: {_EXPECTED}")
    return sides[0] if len(sides) == 1 else Sides(height=sides[1], width=sides[0])


def seen_size(native: Sides, choice: SizeChoice) -> Sides:
    """The sides, multiples of 8, at which the network sees an image of `native` sides.

    The shape of the image is kept as far as they allow: each side is off by at most 4 pixels.
    """
    if isinstance(choice, Sides):
        return choice
    scale = 1.0 if choice == "native" else choice / min(native)
    return Sides(*(max(round(side * scale / SIZE_DIVISOR), 1) * SIZE_DIVISOR for side in native))
