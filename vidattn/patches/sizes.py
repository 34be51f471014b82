"""How large the attention of a layer is, for the cost model."""

from __future__ import annotations

import torch
from torch import nn

from vidattn.backends.cost import Shape


def shape_of(module: nn.Module) -> Shape:
    """Heads, head size and dtype of an attention module of diffusers; the cost model's defaults where it does
    not say. One item: a batch multiplies dense and sparse work alike.
    """
    heads, default = getattr(module, "heads", None), Shape()
    if not isinstance(heads, int) or heads < 1:
        return default
    inner = getattr(module, "inner_dim", None) or heads * default.head_dim
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    # quantized weights: the activations are half precision
    return Shape(heads=heads, head_dim=max(1, int(inner) // heads), dtype=next(dtypes, torch.bfloat16))
