"""When sparse attention pays: a coarse rule, until there is a cost model.

Tiles visit more pairs than a pattern allows, and run them less efficiently than one dense call; so what
counts is the share of all pairs that the plan visits. Measured for the torch backend against PyTorch's fused
attention on 2 CPU cores (head size 64, 4 heads, float32): 4,096 tokens break even where 39 % of the pairs are
visited, run 2.3 times as fast at 14 %; 1,024 tokens break even at 25 %. On a GPU that backend competes with
dense kernels of ten times its rate: the figure there is an estimate.
"""

from __future__ import annotations

import torch

from vidattn.layout import TokenLayout
from vidattn.patterns import Pattern

MIN_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Grid tokens under which dense attention is taken."""
MAX_VISITED = {"cpu": 0.3, "cuda": 0.05}
"""Share of the grid's pairs over which dense attention is taken."""


def why_dense(pattern: Pattern, layout: TokenLayout, device: torch.device) -> str:
    """Why dense attention would be as fast as the pattern on this grid, or ""."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    if layout.grid_tokens < MIN_TOKENS[kind]:
        return f"{layout.grid_tokens} tokens, under min_tokens {MIN_TOKENS[kind]}"
    visited = pattern.visited(layout)
    if visited > MAX_VISITED[kind]:
        return f"{pattern} visits {visited:.2f} of the pairs, over {MAX_VISITED[kind]}: dense is as fast"
    return ""
