"""What the drawings know of patterns that have no plan: segments, and choices made from example data."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from vidattn.layout import TokenLayout
from vidattn.lists import BlockLists, box_numbers
from vidattn.patterns import Pattern, Segments
from vidattn.patterns.dynamic import Choice, DynamicPattern
from vidattn.patterns.hierarchical import Hierarchical

EXAMPLE_NOTE = "chosen for example queries and keys that are alike where tokens are near"
# Whole masks are built for these patterns.
_MOST_TOKENS = 1 << 13

Visits = tuple[Tensor, list[tuple[Tensor, bool]]]
"""Grid tokens of a tile's queries, and of the boxes that it visits, with whether they are full."""


def check_drawable(pattern: Pattern, layout: TokenLayout) -> None:
    """Raise ValueError for what cannot be drawn."""
    if isinstance(pattern, Hierarchical) and pattern.is_sum:
        first, *rest = pattern.branches.split("+")
        raise ValueError(f"{pattern}: a sum of attentions is drawn by branch: branches={first}, then {rest}")
    if isinstance(pattern, (Segments, DynamicPattern)) and layout.tokens > _MOST_TOKENS:
        raise ValueError(
            f"{pattern}: drawn for at most {_MOST_TOKENS:,} tokens, the layout has {layout.tokens:,}"
        )


def example_tensors(layout: TokenLayout, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (1, S, 1, size) whose likeness falls with the distance of their tokens."""
    make = torch.Generator().manual_seed(4)
    axes = (torch.arange(n, dtype=torch.float64) for n in layout.grid)
    places = torch.cartesian_prod(*axes).view(-1, 3)
    waves = torch.randn(3, size, generator=make, dtype=torch.float64) * 5 / max(layout.grid[1:])
    waves[0] *= max(layout.grid[1:]) / (4 * layout.grid[0])
    phases = 2 * math.pi * torch.rand(size, generator=make, dtype=torch.float64)
    features = torch.cos(places @ waves + phases) * 1.5
    words = torch.randn(layout.text_tokens, size, generator=make, dtype=torch.float64)
    before = layout.text_before
    whole = torch.cat([words[:before], features, words[before:]])[None, :, None]
    values = torch.randn(whole.shape, generator=make, dtype=torch.float64)
    return whole, whole, values


@lru_cache(maxsize=4)
def _choice(pattern: DynamicPattern, layout: TokenLayout) -> Choice:
    return pattern.choose(*example_tensors(layout), layout)


@lru_cache(maxsize=4)
def whole_mask(pattern: Pattern, layout: TokenLayout) -> Tensor:
    """bool (S, S): of the first head, where the pattern is dynamic."""
    if isinstance(pattern, DynamicPattern):
        return _choice(pattern, layout).mask(layout, 1, 1)[0, 0]
    return pattern.mask(layout)


def example_visits(pattern: Pattern, layout: TokenLayout) -> list[Visits]:
    """The tiles of a pattern without a plan, as they run."""
    if isinstance(pattern, Segments):
        return _segment_visits(pattern, layout)
    assert isinstance(pattern, DynamicPattern)
    choice = _choice(pattern, layout)
    if isinstance(choice.rule, BlockLists):
        return _list_visits(choice.rule, choice.query_order, choice.key_order)
    plan = choice.rule.plan(TokenLayout(layout.grid))
    query_order, key_order = (_first(o, layout.grid_tokens) for o in (choice.query_order, choice.key_order))
    made: list[Visits] = []
    for tile in plan.tiles:
        boxes = [(key_order[plan.tokens_of(box)], box.full) for box in tile.boxes]
        made.append((query_order[plan.tokens_of(tile)], boxes))
    return made


def _segment_visits(pattern: Segments, layout: TokenLayout) -> list[Visits]:
    made: list[Visits] = []
    for queries, keys in pattern.groups(layout):
        rows = torch.cat([_in_grid(run, layout) for run in queries])
        boxes = [(part, True) for run in keys if len(part := _in_grid(run, layout))]
        if len(rows):
            made.append((rows, boxes))
    return made


def _in_grid(run: tuple[int, int], layout: TokenLayout) -> Tensor:
    first, last = layout.text_before, layout.text_before + layout.grid_tokens
    return torch.arange(max(run[0], first), max(max(run[0], first), min(run[1], last))) - first


def _list_visits(lists: BlockLists, query_order: Tensor | None, key_order: Tensor | None) -> list[Visits]:
    rows, columns = box_numbers(lists.grid, lists.tile), box_numbers(lists.grid, lists.block)
    queries, keys = (_first(o, len(rows)) for o in (query_order, key_order))
    table = lists.visits()[0, 0]
    return [
        (queries[rows == tile], [(keys[columns == block], True) for block in table[tile].nonzero().flatten()])
        for tile in range(lists.tiles)
    ]


def _first(order: Tensor | None, count: int) -> Tensor:
    return torch.arange(count) if order is None else order[0, 0]
