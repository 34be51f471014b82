"""The drawing of a pattern that follows the sliders, and how much it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from vidattn.drawing.figure import query_panel, tile_panel
from vidattn.drawing.frames import FrameView
from vidattn.drawing.sheet import Panel
from vidattn.layout import Grid, TokenLayout
from vidattn.patterns import Pattern
from vidattn.patterns.dynamic import DynamicPattern

SIDE = 480
MOST_TOKENS = 1 << 15
"""Beyond this a drawing would not follow the slider."""
VIEWS = ("what it sees", "what is computed")
"""Keys of one query; or key boxes that the query's tile visits."""


@dataclass(frozen=True)
class Preview:
    """A drawn pattern.

    Args:
        image: the grid.
        legend: (colour as #rrggbb, meaning) for what is on it.
        facts: sentences on density.
    """

    image: Image.Image
    legend: list[tuple[str, str]]
    facts: list[str]


@lru_cache(maxsize=64)
def draw(pattern: Pattern, grid: Grid, query: Grid | None = None, view: str = VIEWS[0]) -> Preview:
    """The pattern on a grid, from one query's side.

    Args:
        pattern: what to draw.
        grid: (T, H, W) in tokens.
        query: (t, y, x), moved onto the grid where it lies outside; the middle when None.
        view: one of ``VIEWS``.

    Raises:
        ValueError: the grid has too many tokens to be drawn at once.
    """
    layout = TokenLayout(grid)
    if layout.grid_tokens > MOST_TOKENS:
        raise ValueError(f"{layout.grid_tokens:,} tokens are too many to draw; at most {MOST_TOKENS:,} are")
    place = on_grid(query, grid)
    panel = (
        query_panel(pattern, layout, place, SIDE)
        if view == VIEWS[0]
        else tile_panel(pattern, layout, place, SIDE)
    )
    return Preview(panel.image, _legend(panel), panel.caption + facts(pattern, layout))


def on_grid(query: Grid | None, grid: Grid) -> Grid:
    """The query, or the token of the grid nearest to it, or the middle."""
    t, y, x = query if query is not None else (n // 2 for n in grid)
    return min(max(t, 0), grid[0] - 1), min(max(y, 0), grid[1] - 1), min(max(x, 0), grid[2] - 1)


def query_at(pixel: tuple[int, int], grid: Grid, query: Grid | None = None) -> Grid:
    """The token under a pixel (x, y) of the drawing that shows ``query``."""
    return on_grid(FrameView(grid, on_grid(query, grid)[0], SIDE).token_at(pixel), grid)


def facts(pattern: Pattern, layout: TokenLayout) -> list[str]:
    """How much the pattern leaves out, in sentences."""
    density = pattern.density(layout)
    visited = pattern.visited(layout)
    grid = "x".join(str(n) for n in layout.grid if n > 1 or layout.grid[0] == 1)
    lines = [
        f"{layout.grid_tokens:,} tokens ({grid.removeprefix('1x')}).",
        f"{density:.1%} of all pairs are seen, {visited:.1%} are computed (whole tiles).",
    ]
    if isinstance(pattern, DynamicPattern):
        lines.append("The keys are chosen from the data, by head: the drawing is an example.")
    elif pattern.covers(layout.grid):
        lines.append("Every token sees every other: this is dense attention.")
    return lines


def _legend(panel: Panel) -> list[tuple[str, str]]:
    return [("#{:02x}{:02x}{:02x}".format(*color), meaning) for color, meaning in panel.legend]
