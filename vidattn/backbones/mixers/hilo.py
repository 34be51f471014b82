"""HiLo attention (LITv2, Pan et al., arXiv 2205.13213)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.windows import pad_to, partition, real, together
from vidattn.backbones.mixers.base import Mixer, dense_attention


class HiLoAttention(Mixer):
    """Some heads attend inside small windows, the others to the windows' means; both side by side.

    Args:
        dim: channels.
        num_heads: heads; ``int(num_heads * alpha)`` of them are of the second kind.
        window_size: extent of the windows per axis; 1 means that all heads see all tokens.
        alpha: share of the heads that see the means, 0 to 1.
        qkv_bias: biases in the projections.
        pad: grids that the windows do not divide: "mask" leaves padding out; "zero" is the authors', whose
            zeros take part in windows and means.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        window_size: int = 2,
        alpha: float = 0.5,
        qkv_bias: bool = True,
        pad: str = "mask",
    ) -> None:
        super().__init__(dim, num_heads)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: must be from 0 to 1")
        if window_size < 1:
            raise ValueError(f"window_size={window_size}: must be at least 1")
        if pad not in ("mask", "zero"):
            raise ValueError(f"pad={pad!r}: must be 'mask' or 'zero'")
        self.window_size, self.pad = window_size, pad
        # 0.29 * 100 is a little under 29 in floating point
        self.low = num_heads if window_size == 1 else int(num_heads * alpha + 1e-6)
        self.high = num_heads - self.low
        low, high = self.low * self.head_dim, self.high * self.head_dim
        if low:
            self.l_q = nn.Linear(dim, low, bias=qkv_bias)
            self.l_kv = nn.Linear(dim, 2 * low, bias=qkv_bias)
            self.l_proj = nn.Linear(low, low)
        if high:
            self.h_qkv = nn.Linear(dim, 3 * high, bias=qkv_bias)
            self.h_proj = nn.Linear(high, high)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """Windows' heads first."""
        size = (self.window_size,) * (x.ndim - 2)
        seen = real(x.shape[1:-1], size, x.device) if self.pad == "mask" else None
        windows = partition(pad_to(x, size), size)
        parts = []
        if self.high:
            parts.append(together(self._inside(windows, seen), size, x.shape[1:-1]))
        if self.low:
            parts.append(self._to_means(x, windows, seen).unflatten(1, x.shape[1:-1]))
        return torch.cat(parts, -1)

    def _inside(self, windows: Tensor, seen: Tensor | None) -> Tensor:
        qkv = self.h_qkv(windows).unflatten(-1, (3, self.high, self.head_dim)).permute(3, 0, 1, 4, 2, 5)
        mask = None if seen is None else seen[:, None, None, :]
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask)
        return self.h_proj(out.transpose(2, 3).flatten(-2))

    def _to_means(self, x: Tensor, windows: Tensor, seen: Tensor | None) -> Tensor:
        if seen is None:
            means = windows.mean(2)
        else:
            means = windows.sum(2) / seen.sum(-1, keepdim=True).to(windows.dtype)
        q = self.l_q(x.flatten(1, -2)).unflatten(-1, (self.low, -1))
        k, v = (t.unflatten(-1, (self.low, -1)) for t in self.l_kv(means).chunk(2, -1))
        return self.l_proj(dense_attention(q, k, v).flatten(-2))
