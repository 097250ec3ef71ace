"""Where the cells of a panel lie on its sheet. Pure arithmetic; draws nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

MIN_CELL = 128
"""Smallest side of a drawn cell, in pixels; smaller images are enlarged by a whole factor."""


@dataclass(frozen=True)
class SheetLayout:
    """Rows of cells of `cell_width` × `cell_height` pixels under one line of headings; a line for the keys last.

    `groups`: how many columns stand close together, from left to right. All other measures grow with the cells,
    so that sheets of any image size look alike.
    """

    groups: Sequence[int]
    rows: int
    cell_width: int
    cell_height: int

    @classmethod
    def of_sheet(cls, size: tuple[int, int], groups: Sequence[int]) -> "SheetLayout | None":
        """Return the layout of a sheet of `size` (width, height) with square cells; None if there is none of it."""
        width, height = size
        guess = round(width * MIN_CELL / cls(groups, 1, MIN_CELL, MIN_CELL).size[0])
        for cell in range(max(MIN_CELL, guess - 2), guess + 3):
            one_row = cls(groups, 1, cell, cell)
            rows = 1 + (height - one_row.size[1]) // one_row.row_height
            layout = cls(groups, rows, cell, cell)
            if rows > 0 and layout.size == size:
                return layout
        return None

    def scaled(self, pixels: int) -> int:
        """Return a measure, given for the smallest cells, for these."""
        return round(pixels * min(self.cell_width, self.cell_height) / MIN_CELL)

    @property
    def margin(self) -> int:
        """White on all four sides."""
        return self.scaled(20)

    @property
    def row_height(self) -> int:
        """A row of cells with its key."""
        return self.cell_height + self.scaled(28)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        right = self.lefts[-1] + self.cell_width
        return right + self.margin, self.top(self.rows) + self.scaled(14) + self.margin

    @property
    def lefts(self) -> list[int]:
        """Left edges of the columns' cells."""
        gaps = [self.scaled(8 if column else 24) for group in self.groups for column in range(group)]
        steps = (self.cell_width + gap for gap in gaps[1:])
        return list(accumulate(steps, initial=self.margin))

    def top(self, row: int) -> int:
        """Upper edge of the cells of a row; of the last line, if there are no more rows."""
        return self.margin + self.scaled(26) + row * self.row_height
