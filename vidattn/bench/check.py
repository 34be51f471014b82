"""Results are checked before they are timed: a wrong kernel can be fast."""

from __future__ import annotations

import torch
from torch import Tensor

from vidattn.bench.call import Call, Function

BOUND = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Greatest ||result - reference|| / ||reference||. Float32 leaves room for tf32 products; the half precisions
for rounded probabilities and, backward, for a rounded output.
"""


def error_forward(call: Call, function: Function, tensors: list[Tensor]) -> float:
    """Relative error of some rows of the output."""
    query, key, value, _ = tensors
    rows = call.rows(query.device)
    with torch.no_grad():
        return _error(function(query, key, value)[:, rows], call.reference(query, key, value, rows))


def error_backward(call: Call, function: Function, tensors: list[Tensor]) -> float:
    """The greatest relative error of the three gradients, for an output gradient that is zero but on some
    rows: then those rows' float64 gradients are the whole.
    """
    rows = call.rows(tensors[0].device)
    slopes = torch.zeros_like(tensors[3])
    slopes[:, rows] = tensors[3][:, rows]
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    got = torch.autograd.grad(function(*leaves), leaves, slopes)
    right = torch.autograd.grad(
        call.reference(leaves[0], leaves[1], leaves[2], rows), leaves, slopes[:, rows].double()
    )
    return max(_error(one, other) for one, other in zip(got, right, strict=True))


def complaint(error: float, dtype: torch.dtype) -> str:
    """Why a result is not reported, or "". NaN never passes."""
    if error <= BOUND[dtype]:
        return ""
    return f"differs from the float64 reference by {error:.1e} of its norm, more than {BOUND[dtype]:.0e}"


def _error(result: Tensor, reference: Tensor) -> float:
    return float((result.double() - reference.double()).norm() / reference.double().norm())
