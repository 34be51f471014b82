"""Linear attention by its equation, and inputs to compare it on."""

import torch
import torch.nn.functional as F
from torch import Tensor

PHI = {
    "elu1": lambda x: F.elu(x) + 1,
    "relu": F.relu,
    "softmax": lambda x: x.softmax(-1),
    "identity": lambda x: x,
}


def quadratic(query, key, value, feature_map="elu1", normalize=True, eps=1e-4) -> Tensor:
    """The n x n form, in the inputs' dtype."""
    phi = PHI[feature_map]
    weights = torch.einsum("bshd,bthd->bhst", phi(query), phi(key)) / key.shape[1]
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    return torch.einsum("bhst,bthe->bshe", weights, value)


def inputs(shape, dtype=torch.float32, device="cpu", heads_first=False) -> list[Tensor]:
    """query (B, S, H, D), key (B, Sk, H, D), value (B, Sk, H, Dv) and the output's gradient, from ``shape`` =
    (B, S, Sk, H, D, Dv); with ``heads_first`` in the memory order (B, H, S, D).
    """
    batch, tokens, keys, heads, size, width = shape
    made = []
    for count, last in ((tokens, size), (keys, size), (keys, width), (tokens, width)):
        one = torch.randn(batch, heads, count, last, device=device).to(dtype).transpose(1, 2)
        made.append(one if heads_first else one.contiguous())
    return made


def with_gradients(function, tensors: list[Tensor], **options) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors[:3]]
    out = function(*leaves, **options)
    return [out, *torch.autograd.grad(out, leaves, tensors[3])]


def exact(tensors: list[Tensor], **options) -> list[Tensor]:
    """:func:`with_gradients` of the equation in float64, on the CPU."""
    return with_gradients(quadratic, [t.double().cpu() for t in tensors], **options)
