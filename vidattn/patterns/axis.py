"""The neighborhood rule along one axis, as NATTEN defines it (arXiv 2204.07143, 2504.16922; code of 0.21.7).

With dilation d an axis of length L falls into d groups, the indices congruent modulo d; queries and keys of
different groups never meet. Inside a group a query stands at a *position* p of n, and sees the positions
``first <= j < stop``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisRule:
    """Window, stride, dilation and causality of one axis, already cut to its length."""

    length: int
    window: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    @classmethod
    def cut(cls, length: int, window: int, stride: int, dilation: int, causal: bool) -> AxisRule:
        """The rule on an axis that may be shorter than the window asks for."""
        dilation = min(dilation, length)
        window = min(window, length // dilation)
        return cls(length, window, min(stride, window), dilation, causal)

    @property
    def whole(self) -> bool:
        """Every query of the axis sees every key."""
        return self.window == self.length and (not self.causal or self.length == 1)

    def group_length(self, group: int) -> int:
        """Positions in a dilation group."""
        return -((group - self.length) // self.dilation)

    def interval(self, position: Tensor, count: Tensor | int) -> tuple[Tensor, Tensor]:
        """``first`` and ``stop`` for queries at ``position`` in groups of ``count`` positions; both never
        decrease.
        """
        count = torch.as_tensor(count, device=position.device)
        block = torch.div(position, self.stride, rounding_mode="floor") * self.stride
        if self.causal:
            leader = torch.minimum(block + self.stride - 1, count - 1)
            return (leader - self.window + 1).clamp(min=0), position + 1
        leader = torch.minimum(block + self.stride // 2, count - 1)
        first = torch.minimum((leader - self.window // 2).clamp(min=0), count - self.window)
        return first, first + self.window

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query at an index of this axis sees the key at another; broadcasts."""
        group = query % self.dilation
        count = torch.div(self.length - 1 - group, self.dilation, rounding_mode="floor") + 1
        first, stop = self.interval(torch.div(query, self.dilation, rounding_mode="floor"), count)
        if self.dilation == 1:
            return (key >= first) & (key < stop)
        position = torch.div(key, self.dilation, rounding_mode="floor")
        return (position >= first) & (position < stop) & (key % self.dilation == group)

    def pairs(self) -> int:
        """Number of (query, key) pairs of the axis that see each other."""
        total = 0
        for group in range(self.dilation):
            count = self.group_length(group)
            first, stop = self.interval(torch.arange(count), count)
            total += int((stop - first).sum())
        return total
