"""Linear attention: keys and values are summed once into a small state that every query reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.attention import check_alike
from vidattn.patterns.text import nearest

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu1": lambda x: F.elu(x) + 1,
    "relu": F.relu,
    "softmax": lambda x: x.softmax(-1),
    "identity": lambda x: x,
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
    number.

    Args:
        query: (B, S, H, D).
        key: (B, Sk, H, D).
        value: (B, Sk, H, Dv).
        feature_map: phi: "elu1" is elu(x) + 1; "relu", "softmax" (over D) or "identity".
        normalize: divide by phi(q) . mean phi(k) + eps.
        eps: see ``normalize``; relative to the mean, as in LinFusion's code.
        backend: "auto" or "torch".

    Returns:
        (B, S, H, Dv) in the query's dtype.

    Raises:
        ValueError: shapes that do not fit, an unknown feature map or backend.
    """
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map={feature_map!r}: {nearest(str(feature_map), FEATURE_MAPS)}")
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend={backend!r}: must be 'auto' or 'torch'")
    if not eps >= 0:
        raise ValueError(f"eps={eps!r}: must be at least 0")
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
    accum = torch.promote_types(query.dtype, torch.float32)
    phi = FEATURE_MAPS[feature_map]
    q, k, v = phi(query.to(accum)), phi(key.to(accum)), value.to(accum)
    state = torch.einsum("bshd,bshe->bhde", k / k.shape[1], v)
    out = torch.einsum("bshd,bhde->bshe", q, state)
    if normalize:
        out = out / (torch.einsum("bshd,bhd->bsh", q, k.mean(1)) + eps)[..., None]
    return out.to(query.dtype)
