"""Neighborhood attention with an optional bias per relative position (NAT, Hassani et al., arXiv 2204.07143;
DiNAT, Hassani and Shi, arXiv 2209.15001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, dense_attention, split
from vidattn.neighborhood import na1d, na2d, na3d
from vidattn.patterns.axis import AxisRule

FUNCTIONS = {1: na1d, 2: na2d, 3: na3d}


class NeighborhoodAttention(Mixer):
    """Every token attends to the ``kernel_size`` nearest per axis; at borders the window moves inwards.

    Where the grid is too small for ``kernel_size * dilation``, the dilation shrinks to what fits, and then
    the window to the axis. (The authors' module pads the map with zeros, which take part in the softmax.)

    The bias goes through the fused attention, exactly and in memory linear in the tokens: the positions of a
    window are told apart by their remainders modulo its size, so one-hot remainders appended to a key, and
    the bias of each remainder's displacement appended to a query, add just the bias to their product.

    Args:
        dim: channels.
        num_heads: heads.
        kernel_size: window per axis, odd.
        dilation: distance of neighbouring keys.
        rel_pos_bias: learn a bias per head and displacement, ``rpb``: (heads, 2 * kernel_size - 1, ...).
        qkv_bias: biases in the projections.
        ndim: axes of the grid; matters for ``rel_pos_bias`` only.
        backend: as in ``vidattn.na2d``.

    Raises:
        ValueError: sizes out of range.
    """

    linear: type[nn.Module] = nn.Linear

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel_size: int = 7,
        dilation: int = 1,
        *,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        ndim: int = 2,
        backend: str = "auto",
    ) -> None:
        super().__init__(dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be odd and at least 1")
        if dilation < 1:
            raise ValueError(f"dilation={dilation}: must be at least 1")
        if ndim not in FUNCTIONS:
            raise ValueError(f"ndim={ndim}: must be 1, 2 or 3")
        self.kernel_size, self.dilation, self.ndim, self.backend = kernel_size, dilation, ndim, backend
        self.qkv = self.linear(dim, 3 * dim, bias=qkv_bias)
        self.no_decay: tuple[str, ...] = ()
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.zeros(num_heads, *[2 * kernel_size - 1] * ndim))
            self.no_decay = ("rpb",)
        else:
            self.register_parameter("rpb", None)
        self.proj = self.linear(dim, dim)

    def reset_own(self) -> None:
        """First values of the bias."""
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Windows on the grid; prefix tokens join every window and see all."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v = (self.heads(t) for t in self.qkv(self.tokens(x, prefix)).chunk(3, -1))
        whole = dense_attention(q[:, :before], k, v).flatten(-2) if before else None
        out = self.proj(self.local(q * self.head_dim**-0.5, k, v, x, before).flatten(-2))
        return out if whole is None else (out, self.proj(whole))

    def local(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, before: int = 0) -> Tensor:
        """The windows' attention as a map (B, *grid, H, D) of x's grid.

        Args:
            q: scaled queries (B, before + N, H, D).
            k: keys.
            v: values.
            x: the map.
            before: number of prefix tokens; they are keys of every window.
        """
        grid = tuple(x.shape[1:-1])
        if len(grid) not in FUNCTIONS or (self.rpb is not None and len(grid) != self.ndim):
            raise ValueError(
                f"x has a grid of {len(grid)} axes: must be {self.ndim}, or any 1 to 3 without a bias"
            )
        rules = [self._rule(extent) for extent in grid]
        if self.rpb is not None:
            q, k = self._append_bias(q, k, rules, before)
        maps = [split(t, x, before)[0] for t in (q, k, v)]
        extra = {"additional_keys": k[:, :before], "additional_values": v[:, :before]} if before else {}
        return FUNCTIONS[len(grid)](
            *maps,
            kernel_size=[rule.window for rule in rules],
            dilation=[rule.dilation for rule in rules],
            scale=1.0,
            backend=self.backend,
            **extra,
        )

    def _rule(self, extent: int) -> AxisRule:
        dilation = max(1, min(self.dilation, extent // self.kernel_size))
        return AxisRule(extent, min(self.kernel_size, extent), 1, dilation)

    def _append_bias(
        self, q: Tensor, k: Tensor, rules: Sequence[AxisRule], before: int
    ) -> tuple[Tensor, Tensor]:
        bias, marks = relative_bias(self.rpb, rules, self.kernel_size)
        rows = F.pad(bias.to(q.dtype), (0, 0, 0, 0, before, 0))
        ones = F.pad(marks.to(k.dtype)[:, None], (0, 0, 0, 0, before, 0))
        batch, heads = q.shape[0], q.shape[2]
        return (
            torch.cat([q, rows.expand(batch, -1, -1, -1)], -1),
            torch.cat([k, ones.expand(batch, -1, heads, -1)], -1),
        )


def relative_bias(table: Tensor, rules: Sequence[AxisRule], kernel_size: int) -> tuple[Tensor, Tensor]:
    """The bias of all windows as a product of queries' and keys' features.

    Args:
        table: (H, 2 * kernel_size - 1, ...) by displacement.
        rules: one per axis of the grid.
        kernel_size: the window that the table is made for.

    Returns:
        (bias, marks) of shapes (N, H, R) and (N, R), R = the product of the windows: bias[i, h] @ marks[j] is
        the table's entry for query i and key j, wherever i sees j.
    """
    bias, marks = table[None], table.new_ones(1, 1)
    for axis, rule in enumerate(rules):
        displacement, remainder = _axis(rule, kernel_size, table.device)
        # (N, H, R, table axes left) -> one axis of the table becomes one of the grid and one of remainders
        flat = bias.reshape(bias.shape[0], table.shape[0], -1, *table.shape[1 + axis :])
        taken = flat[:, :, :, displacement]
        bias = taken.permute(0, 3, 1, 2, 4, *range(5, taken.ndim)).flatten(0, 1)
        own = F.one_hot(remainder, rule.window).to(marks.dtype)
        marks = (marks[:, None, :, None] * own[None, :, None, :]).flatten(2).flatten(0, 1)
    return bias.reshape(marks.shape[0], table.shape[0], -1), marks


def _axis(rule: AxisRule, kernel_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(displacement index per query and remainder (L, window); remainder of each key (L,))."""
    index = torch.arange(rule.length, device=device)
    position, group = index // rule.dilation, index % rule.dilation
    count = (rule.length - 1 - group) // rule.dilation + 1
    first, _ = rule.interval(position, count)
    remainders = torch.arange(rule.window, device=device)
    seen = first[:, None] + (remainders - first[:, None]) % rule.window
    return seen - position[:, None] + kernel_size - 1, position % rule.window
