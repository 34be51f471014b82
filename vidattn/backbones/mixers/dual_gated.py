"""Dual-gated linear attention (HER-Seg's LGViT, github.com/xq141839/HER-Seg)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import depthwise
from vidattn.backbones.layers.rope import GridRotary
from vidattn.backbones.mixers.base import Mixer, split
from vidattn.backbones.mixers.two_pass import elu1, in_float, read, score


class DualGatedLinearAttention(Mixer):
    """Linear attention with a low-rank filter on the values and a gate on the output.

    With f = elu + 1, v = down_proj(silu(up_proj(x))) and rotations R over all channels,
    y_i = R f(q_i) . mean_j R f(k_j) v_j^T / (f(q_i) . mean_j f(k_j) + 1e-6) per head; the output is
    out_proj((y + lepe(v)) * silu(act_proj(x))). The frequencies are 10000^(-t / T) for t under T, T pairs of
    channels per axis. The authors build the rotations for one resolution; here they follow the grid. In
    their checkpoints ``act_proj`` and ``out_proj`` are the block's, the others are in ``attn``.

    Args:
        dim: channels; a multiple of twice the number of the grid's axes for the rotations.
        num_heads: heads.
        value_rank: channels between the values' two layers over ``dim``.
        qkv_bias: biases of queries and keys.
        lepe_kernel: size of the depthwise convolution on the values, odd.
        rope: rotary positions.
        ndim: axes of the grid; matters for the convolution only.

    Raises:
        ValueError: sizes out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        value_rank: float = 0.25,
        qkv_bias: bool = True,
        lepe_kernel: int = 3,
        rope: bool = True,
        ndim: int = 2,
    ) -> None:
        super().__init__(dim, num_heads)
        if int(dim * value_rank) < 1:
            raise ValueError(f"value_rank={value_rank}: must leave at least 1 of dim={dim} channels")
        if lepe_kernel < 1 or lepe_kernel % 2 == 0:
            raise ValueError(f"lepe_kernel={lepe_kernel}: must be odd and at least 1")
        self.rope = rope
        self.act_proj = nn.Linear(dim, dim)
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.up_proj = nn.Linear(dim, int(dim * value_rank))
        self.down_proj = nn.Linear(int(dim * value_rank), dim)
        self.lepe = depthwise(dim, lepe_kernel, ndim=ndim)
        self.out_proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens take part in the attention; they are not turned, and the convolution skips them."""
        before = 0 if prefix is None else prefix.shape[1]
        tokens = self.tokens(x, prefix)
        values = self.down_proj(F.silu(self.up_proj(tokens)))
        q, k, v = in_float(*self.qk(tokens).chunk(2, -1), values)
        q, k = elu1(q), elu1(k)
        turned = (q, k)
        if self.rope:
            # over all channels, before they are split into heads
            rotary = GridRotary(x.shape[1:-1], self.dim, x.device, both_ends=False)
            turned = (rotary(q[:, :, None], before)[:, :, 0], rotary(k[:, :, None], before)[:, :, 0])
        out = read(self.heads(turned[0]), self.heads(turned[1]), self.heads(v))
        out = (out / (score(self.heads(q), self.heads(k)) + 1e-6)).flatten(-2).to(x.dtype)
        local = self.lepe(split(values, x, before)[0]).flatten(1, -2)
        out = out + F.pad(local, (0, 0, before, 0))
        mapped, rest = split(self.out_proj(out * F.silu(self.act_proj(tokens))), x, before)
        return (mapped, rest) if before else mapped
