"""A pattern for each head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.patterns.base import Pattern
from vidattn.patterns.sizes import is_int
from vidattn.plan import Plan


@dataclass(frozen=True)
class PerHead(Pattern):
    """Different patterns for different heads, as STA's searched windows or SVG's two kinds of heads need.

    Its mask has a leading axis of heads; its plans are those of its patterns. Text form:
    ``perhead:patterns=[spatial:width=1.5|temporal:width=1.5],assign=0x1x1x0``.

    Args:
        patterns: the patterns.
        assign: for each query head the number of its pattern.

    Raises:
        ValueError: no patterns, one that is none or a PerHead itself, or numbers out of range.
    """

    name = "perhead"
    patterns: tuple[Pattern, ...]
    assign: tuple[int, ...]

    def __post_init__(self) -> None:
        patterns = tuple(self.patterns) if isinstance(self.patterns, (tuple, list)) else ()
        if not patterns or not all(isinstance(p, Pattern) and not isinstance(p, PerHead) for p in patterns):
            raise ValueError(f"patterns={self.patterns!r}: give at least one pattern, none of them a PerHead")
        given: Any = (self.assign,) if is_int(self.assign) else self.assign
        if not isinstance(given, (tuple, list)) or not given or not all(is_int(n) for n in given):
            raise ValueError(f"assign={self.assign!r}: give the number of a pattern for each head")
        assign: tuple[int, ...] = tuple(given)
        if not all(0 <= n < len(patterns) for n in assign):
            raise ValueError(f"assign={self.assign!r}: numbers must be 0 to {len(patterns) - 1}")
        object.__setattr__(self, "patterns", patterns)
        object.__setattr__(self, "assign", assign)
        super().__post_init__()

    def heads(self, number: int) -> list[int]:
        """The heads that follow pattern ``number``."""
        return [head for head, n in enumerate(self.assign) if n == number]

    def mask(self, layout: TokenLayout) -> Tensor:
        """bool (H, S, S), or (B, H, S, S) when the layout has ``text_valid`` for B > 1 items."""
        masks = [p.mask(layout) for p in self.patterns]
        return torch.stack([masks[n] for n in self.assign], -3)

    def density(self, layout: TokenLayout) -> float:
        densities = [p.density(layout) for p in self.patterns]
        return sum(densities[n] for n in self.assign) / len(self.assign)

    def visited(self, layout: TokenLayout) -> float:
        shares = [p.visited(layout) for p in self.patterns]
        return sum(shares[n] for n in self.assign) / len(self.assign)

    def covers(self, grid: Grid) -> bool:
        return all(self.patterns[n].covers(grid) for n in self.assign)

    def plan(
        self, layout: TokenLayout, tile: Iterable[int] | None = None, key_tile: Iterable[int] | None = None
    ) -> Plan:
        """The plan of the one pattern, when all heads share it.

        Raises:
            ValueError: there are several; ask ``patterns[i].plan``.
        """
        if len(set(self.assign)) > 1:
            raise ValueError("a PerHead has no plan of its own: ask those of its patterns")
        return self.patterns[self.assign[0]].plan(layout, tile, key_tile)

    def to_dict(self) -> dict[str, Any]:
        patterns = [p.to_dict() for p in self.patterns]
        return {"pattern": self.name, "patterns": patterns, "assign": list(self.assign)}
