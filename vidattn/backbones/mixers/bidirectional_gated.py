"""Bidirectional gated linear attention (ViG, Liao et al., arXiv 2405.18425)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import depthwise
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.two_pass import in_float

CHUNK = 16
"""Tokens within which every pair is computed; between chunks a state is carried."""


class BidirectionalGatedLinearAttention(Mixer):
    """Gated linear attention that runs over the tokens in raster order and back, mixed with a convolution.

    With l the depthwise 3x3 convolution of x, [q, k, v] = qkv_proj(l), and log gates logsigmoid(gk_proj(l)) /
    16 per direction and key channel, the forward run is S_t = diag(e^gate_t) S_{t-1} + k_t v_t^T, o_t = q_t
    S_t / sqrt(Dk); the backward run is the same from the end. Both include the token itself; their mean is o.
    The output is o_proj(g * rms(o) + (1 - g) * rms(l)) with g = sigmoid(g_proj(l)) and norms per head. The
    authors divide by four instead of two in evaluation, which the norm undoes but for its epsilon of 1e-6;
    here it is two in both.

    Args:
        dim: channels.
        num_heads: heads.
        expand_k: key channels over ``dim``.
        gate_rank: channels between the two layers that make the gates.
        activations: SiLU after the convolution and before the last projection (ViG-T).
        ndim: axes of the grid.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        *,
        expand_k: float = 0.5,
        gate_rank: int = 16,
        activations: bool = False,
        ndim: int = 2,
    ) -> None:
        super().__init__(dim, num_heads)
        self.key_dim, self.activations = int(dim * expand_k), activations
        if self.key_dim < 1 or self.key_dim % num_heads:
            raise ValueError(
                f"expand_k={expand_k}: gives {self.key_dim} key channels, which num_heads={num_heads} must"
                " divide"
            )
        self.in_proj = nn.Sequential(depthwise(dim, 3, ndim=ndim, bias=False))
        self.qkv_proj = nn.Linear(dim, 2 * self.key_dim + dim, bias=False)
        self.gk_proj = nn.Sequential(
            nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, 2 * self.key_dim)
        )
        self.g_proj = nn.Linear(dim, dim)
        self.g_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.l_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def reset_own(self) -> None:
        """First values of the projections."""
        for layer in (self.in_proj[0], self.qkv_proj, self.g_proj, self.o_proj, *self.gk_proj):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """See the class."""
        local = self.in_proj(x)
        if self.activations:
            local = F.silu(local)
        tokens = self.tokens(local)
        q, k, v = self.qkv_proj(tokens).split([self.key_dim, self.key_dim, self.dim], -1)
        gates = F.logsigmoid(self.gk_proj(tokens)) / 16
        forward, backward = (self.heads(g) for g in gates.chunk(2, -1))
        attended = bidirectional_gla(self.heads(q), self.heads(k), self.heads(v), forward, backward)
        share = self.heads(self.g_proj(tokens).sigmoid())
        out = share * self.g_norm(attended) + (1 - share) * self.l_norm(self.heads(tokens))
        out = out.flatten(-2)
        out = self.o_proj(F.silu(out) if self.activations else out)
        return out.unflatten(1, x.shape[1:-1])


def bidirectional_gla(q: Tensor, k: Tensor, v: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """The mean of gated linear attention from the front and from the back, scaled by 1 / sqrt(Dk).

    Args:
        q: queries (B, S, H, Dk).
        k: keys (B, S, H, Dk).
        v: values (B, S, H, Dv).
        forward: log gates of the run from the front, at most 0, (B, S, H, Dk).
        backward: log gates of the run from the back.

    Returns:
        (B, S, H, Dv) in the values' dtype.
    """
    dtype, scale = v.dtype, 0.5 * q.shape[-1] ** -0.5
    q, k, v, forward, backward = in_float(q * scale, k, v, forward, backward)
    there = gated_linear_attention(q, k, v, forward)
    back = gated_linear_attention(q.flip(1), k.flip(1), v.flip(1), backward.flip(1))
    return (there + back.flip(1)).to(dtype)


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """o_t = q_t S_t with S_t = diag(e^gates_t) S_{t-1} + k_t v_t^T, on (B, S, H, D), in chunks.

    All exponents are sums of log gates from one token to a later one, so that none is above 0.
    """
    length = q.shape[1]
    q, k, v, gates = (_chunks(t) for t in (q, k, v, gates))
    decay = gates.cumsum(2)
    total = decay[:, :, -1:]
    # within a chunk: pairs (t, s), with the decay from s to t per channel
    between = decay[:, :, :, None] - decay[:, :, None]
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()[:, :, None, None]
    between = between.masked_fill(~later, -torch.inf).exp()
    scores = torch.einsum("bmthd,bmtshd,bmshd->bmhts", q, between, k)
    inside = torch.einsum("bmhts,bmshe->bmthe", scores, v)
    states = torch.einsum("bmshd,bmshe->bmhde", k * (total - decay).exp(), v)
    before = _carried(states, total[:, :, 0])
    outside = torch.einsum("bmthd,bmhde->bmthe", q * decay.exp(), before)
    return (inside + outside).flatten(1, 2)[:, :length]


def _chunks(x: Tensor) -> Tensor:
    """(B, S, H, D) as (B, chunks, CHUNK, H, D), zeros behind the last token."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % CHUNK)).unflatten(1, (-1, CHUNK))


def _carried(states: Tensor, decay: Tensor) -> Tensor:
    """States before each chunk (B, M, H, D, E), from what each adds and by how much it lets states decay.

    A scan by doubling: after a step of 2^n, a state holds what its last 2^(n + 1) chunks added.
    """
    count, step = states.shape[1], 1
    while step < count:
        earlier = F.pad(states, (0, 0, 0, 0, 0, 0, step, 0))[:, :count]
        states = states + decay.exp()[..., None] * earlier
        decay = decay + F.pad(decay, (0, 0, 0, 0, step, 0))[:, :count]
        step *= 2
    return F.pad(states, (0, 0, 0, 0, 0, 0, 1, 0))[:, :count]
