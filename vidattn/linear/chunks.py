"""Linear attention with plain tensor operations: a bounded run of tokens at a time, on any device.

The formulas are those of ``vidattn.kernels.linear_kernels``; so is the state, (B, H, D * E + D): S in rows of
E, then z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    # elu(x) + 1, without the 1 that would swallow the digits of a small exp(x)
    "elu1": lambda x: torch.where(x > 0, x + 1, x.clamp(max=0).exp()),
    "relu": F.relu,
    "softmax": lambda x: x.softmax(-1),
    "identity": lambda x: x,
}
"""phi by name, over the last axis."""

_SLOPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "elu1": lambda x, y, slope: torch.where(x > 0, slope, slope * y),
    "relu": lambda x, y, slope: torch.where(x > 0, slope, torch.zeros_like(slope)),
    "softmax": lambda x, y, slope: y * (slope - (y * slope).sum(-1, keepdim=True)),
    "identity": lambda x, y, slope: slope,
}
"""The gradient of x from x, y = phi(x) and the gradient of y."""

# Numbers of a tensor that a run holds in float32: some MiB, so that they stay in a CPU's cache, or enough to
# fill a GPU.
_RUN = {"cpu": 1 << 17, "cuda": 1 << 26}


def forward(
    query: Tensor, key: Tensor, value: Tensor, feature_map: str, normalize: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Output (B, M, H, E) in the query's dtype, and the state in float32 (float64 for float64)."""
    phi, accum = FEATURE_MAPS[feature_map], _accumulation(query)
    batch, tokens, heads, size = query.shape
    width, count = value.shape[3], key.shape[1]
    state = torch.zeros(batch, heads, size * width + size, dtype=accum, device=query.device)
    outer, mean = _split(state, size)
    for run in _runs(key, value):
        k = phi(_heads_first(key, run).to(accum)) / count
        outer += k.transpose(2, 3) @ _heads_first(value, run).to(accum)
        mean += k.sum(2)
    out = query.new_empty(batch, tokens, heads, width)
    for run in _runs(query, value):
        q = phi(_heads_first(query, run).to(accum))
        o = q @ outer
        if normalize:
            o /= q @ mean[..., None] + eps
        out[:, run] = o.transpose(1, 2)
    return out, state


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    feature_map: str,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous."""
    phi, accum = FEATURE_MAPS[feature_map], state.dtype
    slope_of = _SLOPES[feature_map]
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)]
    outer, mean = _split(state, query.shape[3])
    state_grad = torch.zeros_like(state)
    outer_grad, mean_grad = _split(state_grad, query.shape[3])
    for run in _runs(query, value):
        x, g = (_heads_first(t, run).to(accum) for t in (query, grad_out))
        y = phi(x)
        if normalize:
            g = g / (y @ mean[..., None] + eps)
        outer_grad += y.transpose(2, 3) @ g
        slope = g @ outer.transpose(2, 3)
        if normalize:
            drop = (y * slope).sum(-1, keepdim=True) / (y @ mean[..., None] + eps)
            mean_grad -= (y * drop).sum(2)
            slope -= drop * mean[:, :, None]
        grads[0][:, run] = slope_of(x, y, slope).transpose(1, 2)
    state_grad /= key.shape[1]
    for run in _runs(key, value):
        x, v = (_heads_first(t, run).to(accum) for t in (key, value))
        y = phi(x)
        slope = v @ outer_grad.transpose(2, 3) + mean_grad[:, :, None]
        grads[1][:, run] = slope_of(x, y, slope).transpose(1, 2)
        grads[2][:, run] = (y @ outer_grad).transpose(1, 2)
    return grads[0], grads[1], grads[2]


def _accumulation(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _split(state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """S (B, H, D, E) and z (B, H, D), as views."""
    batch, heads, length = state.shape
    outer, mean = state.split([length - size, size], 2)
    return outer.view(batch, heads, size, (length - size) // size), mean


def _runs(rows: Tensor, value: Tensor) -> Iterator[slice]:
    """All tokens of ``rows``, in runs."""
    batch, tokens, heads, size = rows.shape
    most = _RUN["cpu" if rows.device.type == "cpu" else "cuda"]
    length = max(64, most // max(1, batch * heads * max(size, value.shape[3])))
    return (slice(start, min(start + length, tokens)) for start in range(0, tokens, length))


def _heads_first(tensor: Tensor, run: slice) -> Tensor:
    """Those tokens of (B, N, H, D) as (B, H, run, D)."""
    return tensor[:, run].transpose(1, 2)
