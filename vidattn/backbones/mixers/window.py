"""Window attention with a relative bias and shifted windows (Swin, Liu et al., arXiv 2103.14030)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.windows import pad_to, partition, together
from vidattn.backbones.mixers.base import Mixer


class WindowAttention(Mixer):
    """Softmax attention inside windows. Grids that the windows do not divide are padded, padding left out.

    On an axis no longer than the window there is one window of the axis's length, which is not shifted.

    Args:
        dim: channels.
        num_heads: heads.
        window_size: extent of the windows per axis.
        shift: the windows begin so many tokens before the map; they wrap around, and tokens that are not
            neighbours do not see each other.
        rel_pos_bias: learn a bias per head and displacement on a 2-D grid.
        qkv_bias: biases in the projection.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False
    no_decay: tuple[str, ...] = ()
    reads = ("qkv",)

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        window_size: int = 7,
        shift: int = 0,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads)
        if window_size < 1 or not 0 <= shift < window_size:
            raise ValueError(
                f"window_size={window_size}, shift={shift}: the window must be at least 1, the shift less"
            )
        self.window_size, self.shift = window_size, shift
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if rel_pos_bias:
            self.relative_position_bias_table = nn.Parameter(
                torch.zeros((2 * window_size - 1) ** 2, num_heads)
            )
            self.no_decay = ("relative_position_bias_table",)
        else:
            self.register_parameter("relative_position_bias_table", None)

    def reset_own(self) -> None:
        """First values of the bias."""
        if self.relative_position_bias_table is not None:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """All windows at once."""
        grid = x.shape[1:-1]
        size = [min(self.window_size, extent) for extent in grid]
        shift = [self.shift if extent > self.window_size else 0 for extent in grid]
        axes = list(range(1, len(grid) + 1))
        padded = pad_to(x, size)
        if any(shift):
            padded = padded.roll([-s for s in shift], axes)
        windows = partition(padded, size)
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(3, 0, 1, 4, 2, 5)
        bias = self._bias(grid, size, shift, x)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=bias)
        out = together(self.proj(out.transpose(2, 3).flatten(-2)), size, padded.shape[1:-1])
        if any(shift):
            out = out.roll(shift, axes)
        for axis, extent in enumerate(grid):
            out = out.narrow(1 + axis, 0, extent)
        return out

    def _bias(self, grid: tuple[int, ...], size: list[int], shift: list[int], x: Tensor) -> Tensor | None:
        """What is added to the scores: (windows or 1, H or 1, tokens, tokens), or None."""
        bias = None
        if self.relative_position_bias_table is not None:
            if len(grid) != 2:
                raise ValueError(f"x has a grid of {len(grid)} axes: the bias is for 2")
            index = displacement_index(size, self.window_size, x.device)
            bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None].to(x.dtype)
        if not any(shift) and all(extent % s == 0 for extent, s in zip(grid, size, strict=True)):
            return bias
        parts = partition(regions(grid, size, shift, x.device)[None, ..., None], size)[0, :, :, 0]
        apart = parts[:, None, :, None] != parts[:, None, None, :]
        mask = torch.zeros_like(apart, dtype=x.dtype).masked_fill(apart, float("-inf"))
        return mask if bias is None else bias + mask


def displacement_index(size: list[int], window: int, device: torch.device) -> Tensor:
    """Row of the bias table for each pair of tokens of a 2-D window, (tokens, tokens)."""
    rows, columns = (torch.arange(n, device=device) for n in size)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    away = places[:, None] - places[None] + window - 1
    return away[..., 0] * (2 * window - 1) + away[..., 1]


def regions(grid: tuple[int, ...], size: list[int], shift: list[int], device: torch.device) -> Tensor:
    """A number per token of the padded and rolled map: tokens see each other where it is the same.

    Padding has numbers of its own; it follows the map, and precedes what was rolled to the end.
    """
    total = torch.zeros((), dtype=torch.int64, device=device)
    for extent, s, moved in zip(grid, size, shift, strict=True):
        place = torch.arange(-(-extent // s) * s, device=device).roll(-moved)
        kind = torch.where(place >= extent, 1, 0)
        if moved:
            kind = kind + torch.where(place < moved, 2, 0)
        total = total[..., None] * 4 + kind
    return total
