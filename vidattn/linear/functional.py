"""Linear attention: keys and values are summed once into a small state that every query reads."""

from __future__ import annotations

import importlib.util
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vidattn.attention import check_alike
from vidattn.linear import chunks
from vidattn.linear.chunks import FEATURE_MAPS
from vidattn.linear.trial import doubted
from vidattn.patterns.text import nearest

BACKENDS = {
    "torch": "tensor operations on any device, a run of tokens at a time",
    "triton": "fused kernels for GPUs: keys and values, and queries, are read once",
}


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    feature_map: str = "elu1",
    normalize: bool = True,
    eps: float = 1e-4,
    backend: str = "auto",
) -> Tensor:
    """Non-causal linear attention (Katharopoulos et al., arXiv 2006.16236), phi(q) (phi(k)^T v) / (phi(q) .
    sum phi(k)).

    The state is the mean over tokens, in float32 (float64 for float64), so that it does not grow with their
    number. Time and memory are linear in tokens. The result can be differentiated once.

    Args:
        query: (B, S, H, D).
        key: (B, Sk, H, D), with Sk at least 1.
        value: (B, Sk, H, Dv).
        feature_map: phi: "elu1" is elu(x) + 1; "relu", "softmax" (over D) or "identity".
        normalize: divide by phi(q) . mean phi(k) + eps.
        eps: see ``normalize``; relative to the mean, as in LinFusion's code.
        backend: "auto", "torch", or "triton" (a GPU; float16, bfloat16 or float32; D and Dv up to 256).

    Returns:
        (B, S, H, Dv) in the query's dtype.

    Raises:
        ValueError: shapes that do not fit, an unknown feature map or backend, or a backend that cannot run
            the call.

    Example:
        >>> q, k, v = torch.randn(3, 1, 4096, 2, 16)
        >>> linear_attention(q, k, v).shape
        torch.Size([1, 4096, 2, 16])
    """
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map={feature_map!r}: {nearest(str(feature_map), FEATURE_MAPS)}")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: {nearest(str(backend), ['auto', *BACKENDS])}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps={eps!r}: must be a finite number of at least 0")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: must be (batch, tokens, heads, head_dim)"
            )
    check_alike(query, key, value)
    if key.shape[1] != value.shape[1] or key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key has shape {tuple(key.shape)}: needs value's {value.shape[1]} tokens"
            f" and query's {query.shape[2]} heads"
        )
    if key.shape[1] < 1:
        raise ValueError(f"key has shape {tuple(key.shape)}: needs at least one token")
    return linear_attention_op(query, key, value, feature_map, bool(normalize), float(eps), backend)[0]


def triton_reasons(query: Tensor, value: Tensor) -> list[str]:
    """Why the Triton kernels cannot run a call, an empty list where they can."""
    reasons = []
    if importlib.util.find_spec("triton") is None:
        return ["triton is not installed"]
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        reasons.append(f"{str(query.dtype).removeprefix('torch.')} inputs: float16, bfloat16 or float32")
    if max(query.shape[3], value.shape[3]) > 256 or min(query.shape[3], value.shape[3]) < 1:
        reasons.append(f"head sizes {query.shape[3]} and {value.shape[3]}: 1 to 256")
    if query.device.type != "cuda":
        from vidattn.kernels.linear import interpreted

        if query.device.type != "cpu" or not interpreted():
            reasons.append(f"inputs on {query.device.type}: a GPU is needed")
    return reasons


def _implementation(backend: str, query: Tensor, value: Tensor, feature_map: str) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run the call."""
    if backend == "torch" or (backend == "auto" and query.device.type != "cuda"):
        return chunks
    reasons = triton_reasons(query, value)
    if backend == "auto" and not reasons and doubted(query, value, feature_map):
        return chunks
    if not reasons:
        from vidattn.kernels import linear

        return linear
    if backend == "triton":
        raise ValueError(f"backend='triton' cannot run this call: {'; '.join(reasons)}")
    return chunks


# ---------------------------------------------------------------------- the operator
@torch.library.custom_op("vidattn::linear_attention", mutates_args=())
def linear_attention_op(
    query: Tensor, key: Tensor, value: Tensor, feature_map: str, normalize: bool, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, Dv), and for the backward the state (B, H, D * Dv + D)."""
    run = _implementation(backend, query, value, feature_map)
    if 0 in query.shape or 0 in value.shape:
        return _outputs(query, value)
    out, state = run.forward(query, key, value, feature_map, normalize, eps)
    return out, state


@linear_attention_op.register_fake
def _(query, key, value, feature_map, normalize, eps, backend):  # type: ignore[no-untyped-def]
    return _outputs(query, value)


def _outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, size = query.shape
    accum = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = query.new_empty(batch, tokens, heads, value.shape[3])
    return out, query.new_empty(batch, heads, size * value.shape[3] + size, dtype=accum)


@torch.library.custom_op("vidattn::linear_attention_backward", mutates_args=())
def linear_attention_backward_op(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    feature_map: str,
    normalize: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    if 0 in query.shape or 0 in value.shape:
        return query.new_zeros(query.shape), key.new_zeros(key.shape), value.new_zeros(value.shape)
    run = _implementation(backend, query, value, feature_map)
    grads = run.backward(grad_out, query, key, value, state, feature_map, normalize, eps)
    return grads[0], grads[1], grads[2]


@linear_attention_backward_op.register_fake
def _(grad_out, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, output[1])


def _backward(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple:
    query, key, value, state = ctx.saved_tensors
    grads = linear_attention_backward_op(grad_out, query, key, value, state, *ctx.options)
    return (*grads, None, None, None, None)


linear_attention_op.register_autograd(_backward, setup_context=_setup_context)
