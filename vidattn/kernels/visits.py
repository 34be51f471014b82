"""What a box kernel is told about who sees whom, in one direction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Place = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Visits:
    """The columns that each tile of rows visits: queries visit keys in the forward, keys queries in the
    backward of keys and values.

    Args:
        extent: (T, H, W) of the grid.
        step: dilation per axis.
        tile: tokens of a tile of rows, powers of two.
        box: tokens of a box of columns, powers of two.
        rule: "window", or an element mask of lists: "all", "disc", "band", "groups" (``boxes.in_rule``).
        values: the rule's four integers.
        table: the rule's int32 table, on the device.
        cells: how many cells of rows there are per axis (of one dilation group); ``cell`` is a cell's size,
            the tile itself for windows.
        others: how many cells of columns there are per axis; ``other`` is their size.
        index: int32 (B | 1, H | 1, cells of rows, slots) with ~number where the element mask is needed.
        count: int32 (B | 1, H | 1, cells of rows).
    """

    extent: Place
    step: Place
    tile: Place
    box: Place
    rule: str
    values: tuple[int, int, int, int]
    table: Tensor
    cells: Place
    cell: Place
    others: Place
    other: Place
    index: Tensor | None = None
    count: Tensor | None = None

    @property
    def tiles(self) -> int:
        """Programs that cover the rows of one head."""
        total = self.step[0] * self.step[1] * self.step[2]
        for cells, cell, tile in zip(self.cells, self.cell, self.tile, strict=True):
            total *= cells * -(-cell // tile)
        return total

    @property
    def sizes(self) -> tuple[int, ...]:
        """The integers of ``cells_t`` to ``rule_3`` in the kernels' signature."""
        slots = list_b = list_h = 0
        if self.index is not None:
            items, heads, rows, slots = self.index.shape
            list_h = rows if heads > 1 else 0
            list_b = rows * heads if items > 1 else 0
        return (
            *self.cells, *self.cell, self.others[1], self.others[2], *self.other,
            slots, list_b, list_h, *self.values,
        )  # fmt: skip
