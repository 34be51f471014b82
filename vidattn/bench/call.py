"""One call that is measured: its inputs, how much work it is, and a float64 reference for some rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidattn.bench.cases import LINEAR, Case
from vidattn.layout import TokenLayout
from vidattn.linear import FEATURE_MAPS
from vidattn.patterns import Full, from_text
from vidattn.patterns.base import GridPattern, coordinates

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (B, S, H, D), to the output (B, S, H, D)."""

_REFERENCE = 1 << 24  # scores of the reference
_EPS = 1e-4  # linear attention's default


@dataclass(frozen=True)
class Call:
    """One pattern at one size.

    Args:
        case: the size.
        text: the pattern's text form, or "linear".
    """

    case: Case
    text: str

    @property
    def linear(self) -> bool:
        """Linear attention, not a pattern."""
        return self.text == LINEAR

    @property
    def pattern(self) -> GridPattern:
        """The pattern; every query sees all in linear attention.

        Raises:
            ValueError: the text cannot be read, or its pattern has no rule by position to check results with.
        """
        pattern = Full() if self.linear else from_text(self.text)
        if not isinstance(pattern, GridPattern):
            raise ValueError(f"{self.text!r}: only patterns with a rule by position are measured")
        return pattern

    @property
    def layout(self) -> TokenLayout:
        """The case's."""
        return self.case.layout

    @cached_property
    def density(self) -> float:
        """Share of all pairs that the pattern allows."""
        return self.pattern.density(self.layout)

    @cached_property
    def visited(self) -> float:
        """Share of all pairs that the pattern's plan computes, text included."""
        count, text, total = self.layout.grid_tokens, self.layout.text_tokens, self.layout.tokens
        grid = self.pattern.plan(self.layout).visited_pairs
        return (grid + text * (count + total)) / total**2

    def flops(self, backward: bool) -> float:
        """Operations that the result needs: two products forward, five backward; a linear call's state and
        output, and twice that backward.
        """
        case, tokens = self.case, self.layout.tokens
        if self.linear:
            return case.batch * case.heads * 4 * tokens * case.head_dim**2 * (2 if backward else 1)
        pairs = case.batch * case.heads * tokens**2 * self.density
        return pairs * case.head_dim * (10 if backward else 4)

    def bytes(self, itemsize: int, backward: bool) -> float:
        """The least that has to be moved: q, k and v read and o written; backward seven tensors."""
        case = self.case
        return (
            case.batch * case.heads * self.layout.tokens * case.head_dim * itemsize * (7 if backward else 4)
        )

    # ------------------------------------------------------------------ data
    def inputs(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """query, key, value and a gradient of the output: random, the same every time."""
        case = self.case
        make = torch.Generator(device).manual_seed(case.heads * 31 + self.layout.tokens)
        shape = (case.batch, self.layout.tokens, case.heads, case.head_dim)
        return [torch.randn(shape, device=device, dtype=dtype, generator=make) for _ in range(4)]

    def rows(self, device: torch.device) -> Tensor:
        """Tokens whose results are checked: the first and last, and random ones between."""
        tokens = self.layout.tokens
        budget = _REFERENCE // (self.case.batch * self.case.heads * tokens)
        count = min(max(budget, 4), 64, tokens)
        picked = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))[: count - 2]
        return torch.cat([picked, torch.tensor([0, tokens - 1])]).unique().to(device)

    def reference(self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor) -> Tensor:
        """The rows' output by definition, in float64; it can be differentiated."""
        q, k, v = (t.double().transpose(1, 2) for t in (query[:, rows], key, value))
        if self.linear:
            phi = FEATURE_MAPS["elu1"]
            weights = phi(q) @ phi(k).transpose(2, 3) / k.shape[2]
            return (weights / (weights.sum(-1, keepdim=True) + _EPS) @ v).transpose(1, 2)
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~self._mask(rows), float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2)

    def _mask(self, rows: Tensor) -> Tensor:
        """bool (rows, tokens), from the pattern's definition."""
        layout = self.layout
        number = torch.arange(layout.tokens, device=rows.device) - layout.text_before
        on_grid = (number >= 0) & (number < layout.grid_tokens)
        place = coordinates(number.clamp(0, layout.grid_tokens - 1), layout.grid)
        t, y, x = place
        queries, keys = (t[rows][:, None], y[rows][:, None], x[rows][:, None]), (t[None], y[None], x[None])
        allowed = self.pattern.allowed(queries, keys, layout.grid)
        return allowed | ~on_grid[rows][:, None] | ~on_grid[None]
