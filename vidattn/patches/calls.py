"""What a call of attention works on, and whether it can be sparse. All of it runs inside compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidattn.layout import TokenLayout
from vidattn.patches.slots import Decision


class Call(NamedTuple):
    """One call of a model's attention, tensors (B, S, H, D). ``own`` computes it as the model does."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    dropout: float
    scale: float | None
    own: Callable[[Tensor, Tensor, Tensor, Any], Tensor]

    def dense(self) -> Tensor:
        """The model's own result."""
        return self.own(self.query, self.key, self.value, self.mask)

    def first_rows(self, count: int) -> Tensor:
        """The model's own result for the first ``count`` queries."""
        mask = self.mask
        if mask is not None and mask.ndim > 2 and mask.shape[-2] > 1:
            mask = mask[..., :count, :]
        return self.own(self.query[:, :count], self.key, self.value, mask)

    def pieces(self, count: int) -> list[Call]:
        """The calls of ``count`` equal pieces of the batch."""
        tensors = (t.chunk(count) for t in (self.query, self.key, self.value))
        masks = pieces(self.mask, self.query.shape[0], count)
        return [
            self._replace(query=q, key=k, value=v, mask=m) for q, k, v, m in zip(*tensors, masks, strict=True)
        ]


def reversed_text(tensor: Tensor, count: int) -> Tensor:
    """(B, S, ...) with its first ``count`` rows backwards."""
    return torch.cat([tensor[:, :count].flip(1), tensor[:, count:]], dim=1)


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


def refusal(decision: Decision, layout: TokenLayout | None, call: Call) -> str:
    """Why a call on the grid cannot be sparse, or ""."""
    if layout is None or call.query.shape[1] != layout.tokens:
        return "the sequence length is not that of the token grid"
    if call.mask is not None and decision.mask_reason:
        return decision.mask_reason
    if call.dropout > 0.0:
        return "attention dropout is on"
    if call.query.shape[2] != call.key.shape[2]:
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
