"""Patterns that choose from the data: what they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.lists import BlockLists
from vidattn.patterns.base import GridPattern, Pattern, pairs_with_text
from vidattn.plan import Plan


@dataclass(frozen=True, eq=False)
class Choice:
    """What a dynamic pattern chose for one call, made on the inputs' device without waiting for it.

    Query and key tokens of the grid are put into an order of their own for each batch item and head, and
    there they see each other as ``rule`` says: block lists, or a pattern on the grid ``rule`` is meant for.

    Args:
        rule: block lists over the grid, or a pattern.
        query_order: int64 (B, H, N): the grid token that stands at each place; None for raster order.
        key_order: the same for keys and values.
    """

    rule: BlockLists | GridPattern
    query_order: Tensor | None = None
    key_order: Tensor | None = None

    def mask(self, layout: TokenLayout, batch: int, heads: int) -> Tensor:
        """bool (B, H, S, S): who sees whom, text padding not looked at. For tests and small grids."""
        order = self.query_order if self.query_order is not None else self.key_order
        if isinstance(self.rule, BlockLists):
            device, inner = self.rule.index.device, self.rule.mask()
        else:
            device = torch.device("cpu") if order is None else order.device
            inner = self.rule.mask(TokenLayout(layout.grid)).to(device)
        inner = inner.expand(batch, heads, *inner.shape[-2:])
        if self.query_order is not None:
            inner = inner.gather(-2, self.query_order.argsort(-1)[..., None].expand_as(inner))
        if self.key_order is not None:
            inner = inner.gather(-1, self.key_order.argsort(-1)[..., None, :].expand_as(inner))
        mask = torch.ones(batch, heads, layout.tokens, layout.tokens, dtype=torch.bool, device=device)
        grid = slice(layout.text_before, layout.text_before + layout.grid_tokens)
        mask[..., grid, grid] = inner
        return mask


@dataclass(frozen=True)
class DynamicPattern(Pattern):
    """A pattern whose mask depends on queries and keys. Text sees all and is seen by all, except padding.

    The choice has no gradient of its own; it is made once a call, and serves forward and backward.
    """

    def measure(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> list[Tensor]:
        """What is read off these inputs. In compiled graphs this runs as one opaque operator.

        Args:
            query: (B, S, H, D).
            key: (B, S, Hkv, D).
            value: (B, S, Hkv, Dv).
            layout: where the tokens are.
            scale: of the scores, a float or (H,); 1 / sqrt(D) when None.
            text_valid: real text tokens, int64 (B,), or None.
        """
        raise NotImplementedError

    def measured(self, batch: int, heads: int, grid: Grid) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of what :meth:`measure` returns."""
        raise NotImplementedError

    def arrange(self, measured: list[Tensor], layout: TokenLayout) -> Choice:
        """The choice that follows from what was measured."""
        raise NotImplementedError

    def choose(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> Choice:
        """The choice for these inputs; arguments as for :meth:`measure`."""
        with torch.no_grad():
            return self.arrange(self.measure(query, key, value, layout, scale, text_valid), layout)

    def grid_share(self, layout: TokenLayout) -> float:
        """Share of the grid's pairs that a call computes; where counts depend on the data, the greatest."""
        raise NotImplementedError

    def mask_for(
        self,
        query: Tensor,
        key: Tensor,
        layout: TokenLayout,
        value: Tensor | None = None,
        scale: float | Tensor | None = None,
    ) -> Tensor:
        """The mask that these inputs lead to.

        Args:
            query: (B, S, H, D).
            key: (B, S, Hkv, D).
            layout: where the tokens are.
            value: (B, S, Hkv, Dv), for patterns that look at values; ``key`` when None.
            scale: of the scores, a float or (H,); 1 / sqrt(D) when None.

        Returns:
            bool (B, H, S, S) on the inputs' device.
        """
        valid = layout.text_valid_tensor(query.shape[0], query.device)
        choice = self.choose(query, key, key if value is None else value, layout, scale, valid)
        mask = choice.mask(layout, query.shape[0], query.shape[2])
        real = layout.key_valid()
        return mask if real is None else mask & real.to(query.device)[:, None, None]

    def mask(self, layout: TokenLayout) -> Tensor:
        """There is none without data.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self}: the mask depends on the data: ask mask_for(query, key, layout)")

    def density(self, layout: TokenLayout) -> float:
        """The share of the S x S pairs that a call computes, see ``grid_share``."""
        return pairs_with_text(self.grid_share(layout) * layout.grid_tokens**2, layout) / layout.tokens**2

    def visited(self, layout: TokenLayout) -> float:
        return self.grid_share(layout)

    def plan(
        self, layout: TokenLayout, tile: Iterable[int] | None = None, key_tile: Iterable[int] | None = None
    ) -> Plan:
        """There is none without data.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{self}: which keys are visited depends on the data: ask choose(query, key, value, layout)"
        )
