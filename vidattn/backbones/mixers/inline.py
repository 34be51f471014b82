"""InLine attention: injective linear attention and a dynamic convolution (Han et al., arXiv 2412.06590)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, split
from vidattn.backbones.mixers.two_pass import in_float, read, score
from vidattn.patterns.text import nearest

KERNELS = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "exp": lambda x: (0.2 * x).exp(),
}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class InLineAttention(Mixer):
    """Linear attention that subtracts the mean score instead of dividing, plus a convolution made per image.

    With f the kernel, t = 1 / sqrt(D) and s_i = f(q_i) . mean_j f(k_j), the output is
    t f(q_i) mean_j f(k_j) v_j^T + (1 - t s_i) mean_j v_j, whose weights sum to one and can be negative. Two
    grouped linear layers make a 3x3 depthwise kernel of the mean token; its convolution of v is added. The
    paper writes the scores without t; this is the released code's form.

    Args:
        dim: channels.
        num_heads: heads, and groups of the layers that make the kernels.
        kernel: f: "identity", "relu", "leaky_relu" or "exp" (of 0.2 x).
        qkv_bias: biases in the projections.
        local_residual: add the convolution.
        split_qkv: separate projections ``q`` and ``kv`` (InLine-PVT) instead of one ``qkv``.
        ndim: axes of the grid; matters for the convolution only.

    Raises:
        ValueError: values out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        kernel: str = "identity",
        qkv_bias: bool = True,
        local_residual: bool = True,
        split_qkv: bool = False,
        ndim: int = 2,
    ) -> None:
        super().__init__(dim, num_heads)
        if kernel not in KERNELS:
            raise ValueError(f"kernel={kernel!r}: {nearest(str(kernel), KERNELS)}")
        self.kernel, self.split_qkv, self.ndim = kernel, split_qkv, ndim
        if split_qkv:
            self.q = nn.Linear(dim, dim, bias=qkv_bias)
            self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.residual = None
        if local_residual:
            self.residual = nn.Sequential(
                nn.Conv1d(dim, dim, 1, groups=num_heads),
                nn.GELU(),
                nn.Conv1d(dim, 3**ndim * dim, 1, groups=num_heads),
            )

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens take part in the attention and the mean token, but not in the convolution."""
        before = 0 if prefix is None else prefix.shape[1]
        tokens = self.tokens(x, prefix)
        if self.split_qkv:
            q = self.q(tokens)
            k, v = self.kv(tokens).chunk(2, -1)
        else:
            q, k, v = self.qkv(tokens).chunk(3, -1)
        out = inline_attention(self.heads(q), self.heads(k), self.heads(v), self.kernel).flatten(-2)
        if self.residual is not None:
            local = self._local(split(v, x, before)[0], tokens.mean(1))
            out = out + F.pad(local.flatten(1, -2), (0, 0, before, 0))
        mapped, rest = split(self.proj(out), x, before)
        return (mapped, rest) if before else mapped

    def _local(self, v: Tensor, mean: Tensor) -> Tensor:
        assert self.residual is not None
        batch, grid, dim = v.shape[0], v.shape[1:-1], v.shape[-1]
        if len(grid) != self.ndim:
            raise ValueError(f"x has a grid of {len(grid)} axes: must be ndim={self.ndim}")
        kernels = self.residual(mean[..., None]).reshape(batch * dim, 1, *[3] * self.ndim)
        # every image has its own kernels: images and channels together are the groups of one convolution
        image = v.movedim(-1, 1).reshape(1, batch * dim, *grid)
        out = CONVOLUTIONS[self.ndim](image, kernels, padding=1, groups=batch * dim)
        return out.reshape(batch, dim, *grid).movedim(1, -1)


def inline_attention(q: Tensor, k: Tensor, v: Tensor, kernel: str = "identity") -> Tensor:
    """Injective linear attention on (B, S, H, D); see :class:`InLineAttention`."""
    dtype, scale = v.dtype, q.shape[-1] ** -0.5
    q, k, v = in_float(q, k, v)
    q, k = KERNELS[kernel](q), KERNELS[kernel](k)
    out = scale * read(q, k, v) + (1 - scale * score(q, k)) * v.mean(1, keepdim=True)
    return out.to(dtype)
