"""One attention call, as every backend receives it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import TokenLayout
from vidattn.lists import BlockLists
from vidattn.patterns.base import Pattern


@dataclass(frozen=True)
class Problem:
    """Everything about a call but the tensors that need gradients.

    Args:
        pattern: who sees whom.
        layout: where the tokens are; its ``text_valid`` is not used, see ``text_valid``.
        scale: factor of the scores, times ``head_scale`` (H,) where given.
        head_scale: one more factor per head, or None.
        text_valid: int64 (B,) real text tokens per item on the query's device, or None.
        extra: keys behind the sequence that every query sees (NATTEN's additional tokens).
        lists: for a pattern that was chosen from the data, the key blocks that each query tile visits; the
            pattern then says nothing about the grid's pairs.
    """

    pattern: Pattern
    layout: TokenLayout
    scale: float
    head_scale: Tensor | None = None
    text_valid: Tensor | None = None
    extra: int = 0
    lists: BlockLists | None = None

    def key_valid(self, device: torch.device) -> Tensor | None:
        """bool (B, S + extra): which keys are real, or None when all are."""
        if self.text_valid is None:
            return None
        return self.layout.real_keys(self.text_valid.to(device), self.extra)
