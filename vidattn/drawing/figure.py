"""The three panels of a pattern: one query's keys, one tile's key boxes, the whole matrix."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidattn.drawing.colors import FULL, PARTIAL, QUERY, SEEN, SOME, TEXT, UNSEEN, WASTED, Color
from vidattn.drawing.examples import EXAMPLE_NOTE
from vidattn.drawing.frames import FrameView
from vidattn.drawing.numbers import figures_of, full_rows, matrix, number_of, visits_of
from vidattn.drawing.sheet import Panel, compose
from vidattn.layout import Grid, TokenLayout
from vidattn.patterns import Disc, Pattern, Segments
from vidattn.patterns.dynamic import DynamicPattern

_SIDE = 440


def draw_pattern(pattern: Pattern, layout: TokenLayout, query: Grid | None = None) -> Image.Image:
    """One sheet with what ``query`` sees, what its tile visits, and the whole matrix.

    Args:
        pattern: what to draw.
        layout: the grid, and the text tokens around it.
        query: (t, y, x) of the query that is followed; the grid's middle when None.

    Raises:
        ValueError: the query lies outside the grid, or the pattern cannot be drawn on this layout.
    """
    grid = layout.grid
    query = query or (grid[0] // 2, grid[1] // 2, grid[2] // 2)
    if any(not 0 <= at < extent for at, extent in zip(query, grid, strict=True)):
        raise ValueError(f"query={query} lies outside the grid {grid}, whose tokens count from 0")
    figures = figures_of(pattern, layout)
    panels = [
        query_panel(pattern, layout, query),
        tile_panel(pattern, layout, query),
        _matrix_panel(pattern, layout),
    ]
    tokens = f"{layout.grid_tokens:,} tokens on a grid of {'x'.join(map(str, grid))}"
    facts = [
        tokens + (f", {layout.text_tokens} text tokens" if layout.text_tokens else ""),
        f"density {figures.density:.4f} of all pairs"
        + (f" ({figures.grid_density:.4f} of the pairs within the grid)" if layout.text_tokens else ""),
        f"plan: {figures.tiles:,} tiles, {figures.boxes:,} key boxes ({figures.full_boxes:,} full); "
        f"visits {figures.visited_ratio:.2f} times the pairs that the pattern allows",
    ]
    return compose(pattern.to_text(), facts, panels)


# ---------------------------------------------------------------------------------------------- panels
def query_panel(pattern: Pattern, layout: TokenLayout, query: Grid, side: int = _SIDE) -> Panel:
    """What one query sees, about ``side`` pixels wide."""
    grid = layout.grid
    seen = _grid_rows(pattern, layout, torch.tensor([number_of(query, grid)]))[0].view(grid).numpy()
    colors = _fill(grid, UNSEEN)
    colors[seen] = SEEN
    colors[query] = QUERY
    view = FrameView(grid, query[0], side)
    place = ", ".join(
        f"{axis}={at}" for axis, at in zip("tyx", query, strict=True) if grid["tyx".index(axis)] > 1
    )
    legend = [
        (QUERY, f"the query ({place})"),
        (SEEN, f"keys it sees: {int(seen.sum()):,} of {layout.grid_tokens:,}"),
    ]
    legend.append((UNSEEN, "keys it does not see"))
    return Panel(view.draw(colors), "What one query sees", view.note() + _text_note(pattern, layout), legend)


def tile_panel(pattern: Pattern, layout: TokenLayout, query: Grid, side: int = _SIDE) -> Panel:
    """What the tile of one query visits, about ``side`` pixels wide."""
    grid = layout.grid
    queries, boxes = visits_of(pattern, layout, number_of(query, grid))
    share = _grid_rows(pattern, layout, queries).double().mean(0)
    colors = _fill(grid, UNSEEN).reshape(-1, 3)
    wasted = 0
    for keys, full in boxes:
        if full:
            colors[keys.numpy()] = FULL
        else:
            colors[keys.numpy()] = _blend(SOME, PARTIAL, share[keys].numpy())
            unseen = keys[share[keys] == 0].numpy()
            colors[unseen] = WASTED
            wasted += len(unseen)
    colors[queries.numpy()] = QUERY
    visited = sum(len(keys) for keys, _ in boxes)
    unmasked = sum(len(keys) for keys, full in boxes if full)
    view = FrameView(grid, query[0], side)
    legend = [
        (QUERY, f"the tile of that query: {len(queries)} queries (they are keys too)", True),
        (FULL, f"full boxes, no mask needed: {unmasked:,} keys", unmasked > 0),
        (
            PARTIAL,
            f"partial boxes, masked: {visited - unmasked:,} keys, deeper where more see them",
            visited > unmasked,
        ),
        (WASTED, "visited for nothing: in a partial box, but no query sees it", bool(wasted)),
        (UNSEEN, "not visited", visited < layout.grid_tokens),
    ]
    shown = [(color, meaning) for color, meaning, occurs in legend if occurs]
    image = view.draw(colors.reshape(*grid, 3))
    return Panel(image, "What its tile visits", view.note() + _text_note(pattern, layout), shown)


def _matrix_panel(pattern: Pattern, layout: TokenLayout) -> Panel:
    share, exact = matrix(pattern, layout, min(_SIDE, layout.tokens))
    colors = _blend(UNSEEN, SEEN, share)
    side = len(share)
    before, after = (round(n * side / layout.tokens) for n in (layout.text_before, layout.text_after))
    if not isinstance(pattern, Segments):
        for edge in (slice(0, before), slice(side - after, side)):
            colors[edge], colors[:, edge] = TEXT, TEXT
    image = Image.fromarray(colors.astype(np.uint8))
    image = image.resize((side * max(1, _SIDE // side),) * 2, Image.Resampling.NEAREST)
    legend = [(SEEN, "seen; paler where a pixel holds unseen pairs too"), (UNSEEN, "not seen")]
    if layout.text_tokens and not isinstance(pattern, Segments):
        legend.append((TEXT, "text: sees all and is seen by all"))
    caption = [f"rows are queries, columns keys, raster order; one pixel is {layout.tokens / side:.3g} wide"]
    if not exact:
        caption.append("drawn from a sample of the rows")
    if isinstance(pattern, DynamicPattern):
        caption.append(EXAMPLE_NOTE)
    return Panel(image, "The whole matrix", caption, legend)


def _fill(grid: Grid, color: Color) -> np.ndarray:
    return np.full((*grid, 3), color, dtype=np.uint8)


def _blend(low: Color, high: Color, share: np.ndarray) -> np.ndarray:
    share = share[..., None]
    return np.rint(np.array(low) * (1 - share) + np.array(high) * share)


def _grid_rows(pattern: Pattern, layout: TokenLayout, queries: Tensor) -> Tensor:
    """bool (queries, grid tokens)"""
    first = layout.text_before
    return full_rows(pattern, layout, queries + first)[:, first : first + layout.grid_tokens]


def _text_note(pattern: Pattern, layout: TokenLayout) -> list[str]:
    notes = []
    if isinstance(pattern, Disc) and pattern.pooled:
        notes.append(f"and {pattern.pooled_keys(layout.grid)} pooled keys")
    if layout.text_tokens:
        which = "those text tokens that the table allows" if isinstance(pattern, Segments) else None
        notes.append(f"and {which or f'all {layout.text_tokens} text tokens'}")
    return notes
