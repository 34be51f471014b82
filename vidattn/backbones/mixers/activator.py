"""A gated linear unit in the place of attention (Activator, Abdullah and Aydin)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer


class Activator(Mixer):
    """W_3(norm(gelu(W_1 x)) * norm(W_2 x)), with one layer norm for both factors.

    Every token is treated by itself: in this model tokens meet only in the mean in front of the head. It has
    a mixer's surface to be compared with mixers.

    Args:
        dim: channels.
        hidden: channels of the factors; twice ``dim`` when None.

    Raises:
        ValueError: ``hidden`` is under 1.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__(dim, 1)
        hidden = 2 * dim if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden={hidden}: must be at least 1")
        self.gate_proj, self.value_proj = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are treated like all others."""
        return self._each(x) if prefix is None else (self._each(x), self._each(prefix))

    def _each(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(F.gelu(self.gate_proj(x))) * self.norm(self.value_proj(x)))
