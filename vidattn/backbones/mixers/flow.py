"""Flow-attention (Flowformer, Wu et al., arXiv 2202.06258)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, split
from vidattn.backbones.mixers.two_pass import in_float, read


class FlowAttention(Mixer):
    """Linear attention as a flow from keys to queries, with a fixed flow out of each key and into each query.

    See :func:`flow_attention`, which also takes keys of another number than queries. There are no positions
    and no convolution.

    Args:
        dim: channels.
        num_heads: heads.
        bound: see :func:`flow_attention`.
        qkv_bias: biases in the first projection.

    Raises:
        ValueError: values out of range.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, bound: float = 5.0, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound={bound}: must be a finite number above 0")
        self.bound = bound
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are tokens like all others."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v = (self.heads(t) for t in self.qkv(self.tokens(x, prefix)).chunk(3, -1))
        out = flow_attention(q, k, v, self.bound).flatten(-2)
        mapped, rest = split(self.proj(out), x, before)
        return (mapped, rest) if before else mapped


def flow_attention(query: Tensor, key: Tensor, value: Tensor, bound: float = 5.0) -> Tensor:
    """Flow-attention without causality, for self- and cross-attention.

    With q and k the sigmoids of queries and keys, <a, b> = (a + e) . (b + e) + e and e = 1e-6: the incoming
    flow of a query is I_i = <q_i, sum_j k_j> and the outgoing one of a key O_j = <k_j, sum_i q_i>. With the
    other side's flow fixed to one they are I'_i = <q_i, sum_j k_j / O_j> and O'_j = <k_j, sum_i q_i / I_i>,
    the latter at most ``bound`` in size. Keys compete by c = softmax over keys of O', and queries are let in
    by a sigmoid:

        y_i = sigmoid(I'_i L / S) (q_i / I_i) sum_j k_j (S c_j v_j)^T    for L queries and S keys.

    The authors' files differ: the one for images adds the last e and has a bound of 5, the general one has
    neither that e nor a bound above 1. This is the one for images.

    Args:
        query: (B, L, H, D).
        key: (B, S, H, D).
        value: (B, S, H, Dv).
        bound: greatest O' in size.

    Returns:
        (B, L, H, Dv) in the value's dtype.
    """
    dtype, queries, keys = value.dtype, query.shape[1], key.shape[1]
    q, k, v = in_float(query, key, value)
    q, k = q.sigmoid(), k.sigmoid()
    incoming, outgoing = _flow(q, k.sum(1)), _flow(k, q.sum(1))
    let_in = (_flow(q, (k / outgoing).sum(1)) * (queries / keys)).sigmoid()
    share = _flow(k, (q / incoming).sum(1)).clamp(-bound, bound).softmax(1)
    # ``read`` takes the mean over keys
    return (let_in / incoming * read(q, k, v * (share * keys)) * keys).to(dtype)


def _flow(tokens: Tensor, total: Tensor) -> Tensor:
    """<tokens (B, S, H, D), total (B, H, D)> as (B, S, H, 1)."""
    return torch.einsum("bshd,bhd->bsh", tokens + 1e-6, total + 1e-6)[..., None] + 1e-6
