"""LinFusion's generalized linear attention (Liu et al., arXiv 2409.02097).

With f_q and f_k two small networks, phi(z) = elu(z) + 1 per head, and N tokens::

    q = W_q (x + f_q(x))      k = W_k (x + f_k(x))      v = W_v x
    S = 1/N sum_i phi(k_i) v_i^T      z = 1/N sum_i phi(k_i)
    out = W_o ( phi(q) S / (phi(q) . z + 1e-4) ) + b_o
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.linear.functional import linear_attention

EPS = 1e-4
IDENTITY = -1
"""``mid_dim`` of the published form without networks: f_q and f_k are the identity, so q and k see 2x."""


def _network(dim: int, mid_dim: int | None) -> nn.Module:
    if mid_dim == IDENTITY:
        return nn.Identity()
    width = dim if mid_dim is None else mid_dim
    return nn.Sequential(nn.Linear(dim, width), nn.LayerNorm(width), nn.LeakyReLU(), nn.Linear(width, dim))


class LinFusionBranch(nn.Module):
    """What LinFusion adds to a self-attention layer: the networks f_q and f_k, under their published names
    ``to_q_`` and ``to_k_``.

    Args:
        dim: width C of the tokens.
        mid_dim: width of the networks; None for ``dim``, -1 for the identity form.

    Raises:
        ValueError: a width that is neither.
    """

    def __init__(self, dim: int, mid_dim: int | None = None) -> None:
        super().__init__()
        if mid_dim is not None and mid_dim != IDENTITY and not (isinstance(mid_dim, int) and mid_dim > 0):
            raise ValueError(f"mid_dim={mid_dim!r}: must be a width, None for dim, or -1 for the identity")
        self.dim, self.mid_dim = dim, mid_dim
        self.to_q_ = _network(dim, mid_dim)
        self.to_k_ = _network(dim, mid_dim)

    @torch.no_grad()
    def zero_(self) -> None:
        """Let f_q(x) = f_k(x) = 0 for every x. Nothing happens in the identity form."""
        for network in (self.to_q_, self.to_k_):
            if isinstance(network, nn.Sequential):
                for parameter in network[-1].parameters():
                    parameter.zero_()

    def attend(
        self,
        hidden_states: Tensor,
        to_q: Callable[[Tensor], Tensor],
        to_k: Callable[[Tensor], Tensor],
        to_v: Callable[[Tensor], Tensor],
        num_heads: int,
    ) -> Tensor:
        """(B, N, C) to (B, N, C), all but the output projection, with the projections given."""
        query = to_q(hidden_states + self.to_q_(hidden_states))
        key = to_k(hidden_states + self.to_k_(hidden_states))
        parts = (t.unflatten(-1, (num_heads, -1)) for t in (query, key, to_v(hidden_states)))
        return linear_attention(*parts, feature_map="elu1", eps=EPS).flatten(2)


class LinFusionAttention(LinFusionBranch):
    """Self-attention over (B, N, C) in time linear in N; parameter names and shapes are the published ones.

    The sums over tokens are means held in float32, so that neither their number nor large values overflow
    float16.

    Args:
        dim: width C of the tokens.
        num_heads: heads; a divisor of ``dim``.
        mid_dim: width of the networks f_q and f_k; None for ``dim``, -1 for the identity form (published
            Stable Diffusion weights have ``dim``, those for SDXL ``dim // 16``).

    Raises:
        ValueError: heads that do not divide the width, or a ``mid_dim`` that is none of these.
    """

    def __init__(self, dim: int, num_heads: int, mid_dim: int | None = None) -> None:
        super().__init__(dim, mid_dim)
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads!r}: must be a divisor of dim={dim}")
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        # the published modules hold a dropout of 0 behind the projection, hence the name to_out.0
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])

    @classmethod
    def from_pretrained_attention(cls, attn: Any, mid_dim: int | None = None) -> LinFusionAttention:
        """Start from a softmax layer: its q, k, v and out are copied, f_q and f_k give zero.

        Args:
            attn: a self-attention module of diffusers, with ``to_q``, ``to_k``, ``to_v``, ``to_out[0]`` and
                ``heads``.
            mid_dim: as in the constructor. The identity form has no branch that could give zero: its q and k
                see 2x.

        Returns:
            A module in the layer's dtype and on its device.

        Raises:
            ValueError: the layer is no self-attention of one width, or has biases in q, k or v.
        """
        layers = [attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]]
        dim = attn.to_q.weight.shape[1]
        for name, layer in zip(("to_q", "to_k", "to_v", "to_out.0"), layers, strict=True):
            if tuple(layer.weight.shape) != (dim, dim):
                raise ValueError(
                    f"{name} of the layer has shape {tuple(layer.weight.shape)}: must be ({dim}, {dim})"
                )
            if name != "to_out.0" and layer.bias is not None:
                raise ValueError(f"{name} of the layer has a bias, for which LinFusion has no place")
        made = cls(dim, attn.heads, mid_dim)
        out: Any = made.to_out[0]
        with torch.no_grad():
            for mine, theirs in zip([made.to_q, made.to_k, made.to_v, out], layers, strict=True):
                mine.weight.copy_(theirs.weight)
            if layers[-1].bias is None:
                out.bias.zero_()
            else:
                out.bias.copy_(layers[-1].bias)
        made.zero_()
        return made.to(attn.to_q.weight.device, attn.to_q.weight.dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != self.dim:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}: must be (batch, tokens, {self.dim})"
            )
        out = self.attend(hidden_states, self.to_q, self.to_k, self.to_v, self.num_heads)
        return self.to_out[1](self.to_out[0](out))
