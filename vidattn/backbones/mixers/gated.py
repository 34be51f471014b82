"""What RALA, MALA and their models' softmax attention share: projections, a convolution on the values, and a
gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.backbones.layers.conv import Pointwise, depthwise
from vidattn.backbones.layers.rope import GridRotary
from vidattn.backbones.mixers.base import Mixer, dense_attention, split

Turn = Callable[[Tensor], Tensor]


class GatedMixer(Mixer):
    """out = proj((core(q, k, v) + lepe(v)) * o) with [q, k, v, o] = qkvo(x); o has no activation.

    Args:
        dim: channels.
        num_heads: heads.
        qkv_bias: biases in the projections.
        lepe_kernel: size of the depthwise convolution on the values, odd; 0 leaves it out.
        gate: multiply by o; without it there is no o in ``qkvo``.
        rope: rotary positions on the grid.
        ndim: axes of the grid; matters for the convolution only.

    Raises:
        ValueError: sizes out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = True,
        lepe_kernel: int = 5,
        gate: bool = True,
        rope: bool = True,
        ndim: int = 2,
    ) -> None:
        super().__init__(dim, num_heads)
        if lepe_kernel < 0 or (lepe_kernel and lepe_kernel % 2 == 0):
            raise ValueError(f"lepe_kernel={lepe_kernel}: must be odd, or 0 for none")
        self.gate, self.rope = gate, rope
        self.qkvo = Pointwise(dim, (4 if gate else 3) * dim, bias=qkv_bias)
        self.lepe = depthwise(dim, lepe_kernel, ndim=ndim) if lepe_kernel else None
        self.proj = Pointwise(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens take part in the core; they are not turned and get nothing from the convolution."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v, *o = self.qkvo(self.tokens(x, prefix)).chunk(4 if self.gate else 3, -1)
        turn = self._turn(x, before)
        out = self.core(self.heads(q), self.heads(k), self.heads(v), turn).flatten(-2)
        if self.lepe is not None:
            local = self.lepe(split(v, x, before)[0]).flatten(1, -2)
            out = out + F.pad(local, (0, 0, before, 0))
        out = self.proj(out * o[0] if self.gate else out)
        return split(out, x, before) if before else out.unflatten(1, x.shape[1:-1])

    def _turn(self, x: Tensor, before: int) -> Turn:
        if not self.rope:
            return lambda t: t
        rotary = GridRotary(x.shape[1:-1], self.head_dim, x.device)
        return lambda t: rotary(t, before)

    def core(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
        """Attention on (B, S, H, D); ``turn`` rotates queries or keys. A subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define core")


class GatedSoftmaxAttention(GatedMixer):
    """Softmax attention in the frame of :class:`GatedMixer`: the last stages of RAVLT and MAViT."""

    def core(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
        """softmax(turned q . turned k / sqrt(D)) v."""
        return dense_attention(turn(q), turn(k), v)


def relevance(q: Tensor, k: Tensor) -> Tensor:
    """softmax over keys of (mean query . key / sqrt(D)), as (B, S, H, 1)."""
    logits = torch.einsum("bhd,bshd->bsh", q.mean(1), k) * q.shape[-1] ** -0.5
    return logits.softmax(1)[..., None]
