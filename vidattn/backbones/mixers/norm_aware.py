"""Norm-aware linear attention (NaLaFormer, Meng et al., arXiv 2506.21137)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import depthwise
from vidattn.backbones.layers.rope import GridRotary
from vidattn.backbones.mixers.base import Mixer, dense_attention, split
from vidattn.backbones.mixers.gated import Turn
from vidattn.backbones.mixers.two_pass import in_float, read, score


class NormGatedMixer(Mixer):
    """out = out_proj(ln(core(q, k, v) + lepe(v)) * SiLU(g)) with [q, k, v, g] = qkvg(x).

    Args:
        dim: channels.
        num_heads: heads; channels per head are a multiple of twice the axes of the grid.
        ndim: axes of the grid; matters for the 5x5 depthwise convolution ``lepe`` only.

    Raises:
        ValueError: sizes out of range.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, ndim: int = 2) -> None:
        super().__init__(dim, num_heads)
        self.qkvg = nn.Linear(dim, 4 * dim)
        self.lepe = depthwise(dim, 5, ndim=ndim)
        self.ln = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens take part in the core; they are not turned and get nothing from the convolution."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v, gate = self.qkvg(self.tokens(x, prefix)).chunk(4, -1)
        rotary = GridRotary(x.shape[1:-1], self.head_dim, x.device)
        out = self.core(self.heads(q), self.heads(k), self.heads(v), lambda t: rotary(t, before)).flatten(-2)
        local = self.lepe(split(v, x, before)[0]).flatten(1, -2)
        out = self.ln(out + F.pad(local, (0, 0, before, 0))) * F.silu(gate)
        mapped, rest = split(self.out_proj(out), x, before)
        return (mapped, rest) if before else mapped

    def core(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
        """Attention on (B, S, H, D); ``turn`` rotates queries or keys. A subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define core")


class NormAwareLinearAttention(NormGatedMixer):
    """Linear attention whose queries are sharpened by their norm, with one feature for each sign.

    With u = q / (|q| + 1e-6) and p = 3 (1/2 + tanh |q|), queries are [relu(u)^p, relu(-u)^p] and keys
    [relu(k)^3, relu(-k)^3]; each half is turned by the rotary positions by itself, and attention is
    normalised by the scores without rotations, plus 1e-6. The paper writes cosines of the directions' angles;
    this is the released code's form, whose queries are divided by the bare norm: the 1e-6 is ours and keeps a
    query of zeros finite.
    """

    def core(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
        """See the class."""
        dtype = v.dtype
        q, k, v = in_float(q, k, v)
        norm = q.norm(dim=-1, keepdim=True)
        power = 3 * (0.5 + norm.tanh())
        unit = q / (norm + 1e-6)
        queries = [_power(part, power) for part in (unit, -unit)]
        keys = [F.relu(part) ** 3 for part in (k, -k)]
        total = score(torch.cat(queries, -1), torch.cat(keys, -1)) + 1e-6
        turned = [torch.cat([turn(half) for half in halves], -1) for halves in (queries, keys)]
        return (read(turned[0], turned[1], v) / total).to(dtype)


class NormGatedSoftmaxAttention(NormGatedMixer):
    """Softmax attention in the frame of :class:`NormGatedMixer`: the last stages of NaLaFormer."""

    def core(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
        """softmax(turned q . turned k / sqrt(D)) v."""
        return dense_attention(turn(q), turn(k), v)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """relu(base)^exponent, whose gradients are finite at 0 as well."""
    positive = base > 0
    safe = torch.where(positive, base, torch.ones_like(base))
    return torch.where(positive, (exponent * safe.log()).exp(), torch.zeros_like(base))
