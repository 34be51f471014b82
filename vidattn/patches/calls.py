"""What a call of attention works on, and whether it can be sparse. All of it runs inside compiled graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidattn.layout import TokenLayout
from vidattn.patches.slots import Decision


def layout_of_call(decision: Decision, length: int, valid: Tensor | None) -> TokenLayout | None:
    """The decision's layout with the text padding of this forward. In graphs its sizes are taken from
    tensors: one graph serves all sizes and prompts.
    """
    layout, extent = decision.layout, decision.extent
    if layout is None or extent is None:
        return layout
    before, after = layout.text_before, layout.text_after
    if not torch.compiler.is_compiling():
        if decision.trimmed and layout.grid_tokens <= length - before < layout.tokens - before:
            return TokenLayout(layout.grid, before, length - before - layout.grid_tokens)
        return layout if valid is None else TokenLayout(layout.grid, before, after, valid)
    frames, height, width = extent.shape
    rest = length - extent.numel()
    if decision.trimmed:
        torch._check(rest >= before)  # the graph may not know how much was dropped
        return TokenLayout((frames, height, width), before, rest - before, valid)
    if decision.text == "before":
        return TokenLayout((frames, height, width), rest, 0, valid)
    if decision.text == "after":
        return TokenLayout((frames, height, width), 0, rest, valid)
    return TokenLayout((frames, height, width), rest - after if before else 0, after, valid)


def refusal(
    decision: Decision, layout: TokenLayout | None, query: Tensor, key: Tensor, mask: Any, dropout: float
) -> str:
    """Why a call on the grid cannot be sparse, or ""."""
    if layout is None or query.shape[1] != layout.tokens:
        return "the sequence length is not that of the token grid"
    if mask is not None and decision.mask_reason:
        return decision.mask_reason
    if dropout > 0.0:
        return "attention dropout is on"
    if query.shape[2] != key.shape[2]:
        return "query and key heads differ"
    return ""


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast treats the inputs of torch's own attention."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype != torch.float64 else t for t in tensors)


def pieces(tensor: Any, batch: int, count: int) -> tuple[Any, ...]:
    """A mask's or a count's part for each piece of the batch; what has no batch is everybody's."""
    whole = not isinstance(tensor, Tensor) or tensor.shape[0] != batch
    return (tensor,) * count if whole else tensor.chunk(count)
