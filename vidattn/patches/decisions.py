"""Putting decisions together: of the pieces of a batch, and with what of a layout they may depend on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vidattn.layout import TokenLayout
from vidattn.patches.slots import Decision


def together(parts: list[Decision]) -> Decision:
    """One decision for a batch of equal pieces, which may run differently."""
    if len(parts) == 1 or all(part.pattern is None for part in parts):
        return parts[0]
    shared = tuple(replace(part, share=1 / len(parts)) for part in parts)
    return Decision(shared[0].layout, None, 1.0, shared[0].steps, parts=shared)


def text_side(layout: TokenLayout) -> str:
    """Where a layout has text: "before", "after", "both" or ""."""
    if layout.text_before:
        return "both" if layout.text_after else "before"
    return "after" if layout.text_after else ""


def apart(layout: TokenLayout | None, device: torch.device) -> tuple[TokenLayout | None, Tensor | None]:
    """A layout without ``text_valid``, and that as a tensor."""
    if layout is None or layout.text_valid is None:
        return layout, None
    valid = layout.text_valid
    if not isinstance(valid, Tensor):
        valid = torch.tensor(valid, dtype=torch.int64, device=device)
    return replace(layout, text_valid=None), valid
