"""What a pattern is: pure data that says which keys each query of a token grid sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout, canonical_grid
from vidattn.plan import KeyBox, Plan, ranges

Coordinates = tuple[Tensor, Tensor, Tensor]
"""(t, y, x) of tokens, as integer tensors that broadcast against each other."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which keys each query sees, as data. ``mask`` is the definition.

    Most patterns are :class:`GridPattern`; the others compute something that a rule for two places of the
    grid cannot say: text that takes part (Segments), keys made of other keys, or a choice that depends on
    the data.
    """

    name: ClassVar[str]
    encoded: ClassVar[str]
    """The text form with every parameter, made at construction so that ``torch.compile`` meets a constant."""

    def __post_init__(self) -> None:
        values = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        text = ",".join(f"{n}={value_text(v)}" for n, v in values if v is not None)
        object.__setattr__(self, "encoded", f"{self.name}:{text}")

    # ------------------------------------------------------------------ what a pattern says
    def mask(self, layout: TokenLayout) -> Tensor:
        """The brute-force mask: True where the query (row) sees the key (column).

        Returns:
            bool (S, S) on the CPU; (B, S, S) when the layout has ``text_valid`` for B > 1 items.
        """
        raise NotImplementedError

    def density(self, layout: TokenLayout) -> float:
        """Exact share of the S x S pairs that the mask allows (the mean over items when text padding
        differs).
        """
        raise NotImplementedError

    def covers(self, grid: Grid) -> bool:
        """True when every query of the grid certainly sees every key, decided by comparing a few sizes."""
        raise NotImplementedError

    def visited(self, layout: TokenLayout) -> float:
        """Share of the grid's pairs that a call computes, masked ones included."""
        raise NotImplementedError

    def plan(
        self, layout: TokenLayout, tile: Iterable[int] | None = None, key_tile: Iterable[int] | None = None
    ) -> Plan:
        """Tiles of queries and the key boxes that each visits. Text is not in the plan: every tile visits all
        of it.

        Args:
            layout: only its grid matters.
            tile: extent of a query tile, (t, h, w) in steps; the pattern's own choice when None.
            key_tile: greatest extent of a key box; a pattern's natural boxes when None.

        Raises:
            ValueError: a tile is no triple of positive integers, or one that the pattern cannot use; or the
                pattern has no plan.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ as data
    def to_dict(self) -> dict[str, Any]:
        """Parameters and the pattern's name, as JSON would hold them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"pattern": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    def to_text(self) -> str:
        """The short text form, defaults left out: ``neighborhood:window=33x33``."""
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={value_text(value)}")
        return self.name + (":" + ",".join(parts) if parts else "")

    def __str__(self) -> str:
        return self.to_text()


@dataclasses.dataclass(frozen=True)
class GridPattern(Pattern):
    """A pattern whose ``allowed`` is the definition; masks, densities and plans follow from it.

    Text tokens see everything and are seen by everything, except that padding (``TokenLayout.text_valid``) is
    not seen.
    """

    # ------------------------------------------------------------------ what a pattern defines
    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        """Whether each query sees each key: bool of the broadcast shape, on the coordinates' device."""
        raise NotImplementedError

    def grid_pairs(self, grid: Grid) -> int:
        """Exact number of (query, key) pairs of the grid that see each other."""
        raise NotImplementedError

    def default_tile(self, grid: Grid) -> Grid:
        """The query tile that a plan takes unless it is told another."""
        raise NotImplementedError

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        """The plan for one grid; ``tile`` is already cut to it."""
        raise NotImplementedError

    @property
    def text_sees_extra(self) -> bool:
        """Whether text sees the extra keys behind the sequence, as the grid always does."""
        return True

    # ------------------------------------------------------------------ what follows
    def mask(self, layout: TokenLayout) -> Tensor:
        count, text = layout.grid_tokens, layout.text_before
        number = torch.arange(count)
        places = coordinates(number, layout.grid)
        mask = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
        queries = tuple(c[:, None] for c in places)
        keys = tuple(c[None, :] for c in places)
        mask[text : text + count, text : text + count] = self.allowed(queries, keys, layout.grid)  # type: ignore[arg-type]
        return hide_padding(mask, layout)

    def density(self, layout: TokenLayout) -> float:
        return pairs_with_text(self.grid_pairs(layout.grid), layout) / layout.tokens**2

    def plan(
        self, layout: TokenLayout, tile: Iterable[int] | None = None, key_tile: Iterable[int] | None = None
    ) -> Plan:
        shapes = [
            None if t is None else canonical_grid(tuple(t), n)
            for t, n in ((tile, "tile"), (key_tile, "key_tile"))
        ]
        return _plan(self, layout.grid, shapes[0], shapes[1])

    def visited(self, layout: TokenLayout) -> float:
        return self.plan(layout).visited_pairs / layout.grid_tokens**2


def hide_padding(mask: Tensor, layout: TokenLayout) -> Tensor:
    """``mask`` (S, S + more) without the padded text of ``layout``; (B, S, S + more) for B > 1 items."""
    valid = layout.key_valid()
    if valid is None:
        return mask
    mask = mask.expand(len(valid), *mask.shape).clone()
    mask[..., : layout.tokens] &= valid[:, None, :]
    return mask[0] if len(mask) == 1 else mask


def pairs_with_text(grid_pairs: float, layout: TokenLayout) -> float:
    """Pairs of the whole sequence where text sees all and is seen by all (the mean over items)."""
    count, text = layout.grid_tokens, layout.text_tokens
    real = float(text)
    if layout.text_valid is not None:
        real = float(torch.as_tensor(layout.text_valid).double().mean())
    # grid rows see their grid keys and the real text; text rows see the grid and the real text
    return grid_pairs + count * real + text * (count + real)


def value_text(value: object) -> str:
    """A parameter as the text form has it."""
    if isinstance(value, tuple) and value and isinstance(value[0], Pattern):
        return "[" + "|".join(p.to_text() for p in value) + "]"
    if isinstance(value, tuple):
        return "x".join(value_text(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def coordinates(number: Tensor, grid: Grid) -> Coordinates:
    """(t, y, x) of grid tokens given by their raster number."""
    rows = torch.div(number, grid[2], rounding_mode="floor")
    return torch.div(rows, grid[1], rounding_mode="floor"), rows % grid[1], number % grid[2]


def cut_tile(tile: Grid, grid: Grid) -> Grid:
    """``tile`` no larger than the grid."""
    return min(tile[0], grid[0]), min(tile[1], grid[1]), min(tile[2], grid[2])


@lru_cache(maxsize=256)
def _plan(pattern: GridPattern, grid: Grid, tile: Grid | None, key_tile: Grid | None) -> Plan:
    return pattern.make_plan(grid, cut_tile(tile or pattern.default_tile(grid), grid), key_tile)


def split_box(lo: Grid, hi: Grid, key_tile: Grid | None, full: bool) -> list[KeyBox]:
    """The undilated box [lo, hi) cut into boxes of at most ``key_tile``; empty boxes vanish."""
    if any(a >= b for a, b in zip(lo, hi, strict=True)):
        return []
    piece = key_tile or tuple(b - a for a, b in zip(lo, hi, strict=True))
    t_cut, y_cut, x_cut = (ranges(a, b, n) for a, b, n in zip(lo, hi, piece, strict=True))
    return [
        KeyBox((t0, y0, x0), (t1 - t0, y1 - y0, x1 - x0), full)
        for t0, t1 in t_cut
        for y0, y1 in y_cut
        for x0, x1 in x_cut
    ]


def tile_bounds(grid: Grid, tile: Grid) -> list[tuple[Grid, Grid]]:
    """(start, stop) of the tiles of an undilated grid, in raster order."""
    t_cut, y_cut, x_cut = (ranges(0, n, s) for n, s in zip(grid, tile, strict=True))
    return [((t0, y0, x0), (t1, y1, x1)) for t0, t1 in t_cut for y0, y1 in y_cut for x0, x1 in x_cut]
