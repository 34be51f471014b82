"""Multi-axis gated MLP and cross gating (MAXIM, Tu et al., arXiv 2201.02973)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.windows import pad_to, partition, together
from vidattn.backbones.mixers.base import Mixer


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, which is the authors'."""
    return F.gelu(x, approximate="tanh")


class AxisDense(nn.Module):
    """One linear layer over the places of a block, or over the cells of a grid.

    "block": windows of ``extent`` tokens per axis; the tokens of a window are mixed. "grid": the map is cut
    into ``extent`` cells per axis; the tokens at the same place of all cells are mixed. Maps that do not
    divide are padded with zeros behind.

    Args:
        kind: "block" or "grid".
        extent: per axis.
        ndim: axes of the map.
    """

    def __init__(self, kind: str, extent: int, ndim: int) -> None:
        super().__init__()
        self.kind, self.extent, self.ndim = kind, extent, ndim
        self.dense = nn.Linear(extent**ndim, extent**ndim)
        self.reset_own()

    def reset_own(self) -> None:
        """The authors' first values, with which the gate is nearly 1."""
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.ones_(self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_to(x, (self.extent,) * self.ndim)
        grid = padded.shape[1:-1]
        size = [self.extent if self.kind == "block" else n // self.extent for n in grid]
        axis = -2 if self.kind == "block" else -3
        mixed = self.dense(partition(padded, size).movedim(axis, -1)).movedim(-1, axis)
        whole = together(mixed, size, grid)
        for n, extent in enumerate(x.shape[1:-1]):
            whole = whole.narrow(1 + n, 0, extent)
        return whole


class GatedMLP(nn.Module):
    """x + W_out(u * (dense(LN(v)) + 1)) with [u, v] = gelu(W_in LN(x)).

    Args:
        kind: as in :class:`AxisDense`.
        dim: channels.
        extent: per axis.
        ndim: axes of the map.
    """

    def __init__(self, kind: str, dim: int, extent: int, ndim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.gate_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mix = AxisDense(kind, extent, ndim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        u, v = gelu(self.in_proj(self.norm(x))).chunk(2, -1)
        return x + self.out_proj(u * (self.mix(self.gate_norm(v)) + 1))


class MultiAxisGMLP(Mixer):
    """Half of the channels are mixed inside blocks, the other half between the cells of a grid; residual.

    x + W_out [grid(s), block(t)] with [s, t] = gelu(W_in LN(x)), both of ``dim`` channels.

    The authors' code has no padding: it wants maps that blocks and grid divide. Here each branch's gate pads
    with zeros behind, after the norm in front of it. Their parameters are Flax's; these are our names.

    Args:
        dim: channels.
        block_size: extent of the blocks per axis.
        grid_size: number of the grid's cells per axis.
        ndim: axes of the map.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False

    def __init__(self, dim: int, *, block_size: int = 8, grid_size: int = 8, ndim: int = 2) -> None:
        super().__init__(dim, 1)
        check_sizes(block_size, grid_size, ndim)
        self.ndim = ndim
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.grid = GatedMLP("grid", dim, grid_size, ndim)
        self.block = GatedMLP("block", dim, block_size, ndim)
        self.out_proj = nn.Linear(2 * dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """See the class."""
        check_rank(x, self.ndim)
        s, t = gelu(self.in_proj(self.norm(x))).chunk(2, -1)
        return x + self.out_proj(torch.cat([self.grid(s), self.block(t)], -1))


class SpatialGate(nn.Module):
    """W_out [dense_grid(u), dense_block(v)] with [u, v] = gelu(W_in LN(x)).

    Args:
        dim: channels.
        block_size: extent of the blocks per axis.
        grid_size: number of the grid's cells per axis.
        ndim: axes of the map.
    """

    def __init__(self, dim: int, block_size: int, grid_size: int, ndim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.grid = AxisDense("grid", grid_size, ndim)
        self.block = AxisDense("block", block_size, ndim)
        self.out_proj = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        u, v = gelu(self.in_proj(self.norm(x))).chunk(2, -1)
        return self.out_proj(torch.cat([self.grid(u), self.block(v)], -1))


class CrossGating(nn.Module):
    """Two maps of one grid gate each other.

    With x, y after a linear layer each, x1 = gelu(W LN(x)), y1 = gelu(W LN(y)) and the gates G of
    :class:`SpatialGate`: y' = W_y(y1 * G_x(x1)) + y and x' = W_x(x1 * G_y(y1)) + y' + x. The y' in x' is
    the authors'. Where y is coarser, they upsample it first by a transposed convolution: that is up to the
    caller.

    Args:
        dim_x: channels of x.
        dim_y: channels of y.
        dim: channels of both results; ``dim_x`` when None.
        block_size: extent of the blocks per axis.
        grid_size: number of the grid's cells per axis.
        ndim: axes of the map.

    Raises:
        ValueError: values out of range.
    """

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim: int | None = None,
        *,
        block_size: int = 8,
        grid_size: int = 8,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        check_sizes(block_size, grid_size, ndim)
        dim = dim_x if dim is None else dim
        self.dim_x, self.dim_y, self.ndim = dim_x, dim_y, ndim
        self.enter_x, self.enter_y = nn.Linear(dim_x, dim), nn.Linear(dim_y, dim)
        self.norm_x, self.norm_y = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.in_x, self.in_y = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate_x = SpatialGate(dim, block_size, grid_size, ndim)
        self.gate_y = SpatialGate(dim, block_size, grid_size, ndim)
        self.out_x, self.out_y = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x', y').

        Args:
            x: (B, *grid, dim_x).
            y: (B, *grid, dim_y).

        Raises:
            ValueError: shapes that do not fit.
        """
        check_rank(x, self.ndim)
        if x.shape[:-1] != y.shape[:-1] or x.shape[-1] != self.dim_x or y.shape[-1] != self.dim_y:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}: must be (batch, *grid, {self.dim_x}) and"
                f" (batch, *grid, {self.dim_y}) with one grid"
            )
        x, y = self.enter_x(x), self.enter_y(y)
        x1, y1 = gelu(self.in_x(self.norm_x(x))), gelu(self.in_y(self.norm_y(y)))
        gate_x, gate_y = self.gate_x(x1), self.gate_y(y1)
        y = self.out_y(y1 * gate_x) + y
        return self.out_x(x1 * gate_y) + y + x, y


def check_sizes(block_size: int, grid_size: int, ndim: int) -> None:
    """Raise ValueError unless all are at least 1."""
    if min(block_size, grid_size, ndim) < 1:
        raise ValueError(f"block_size={block_size}, grid_size={grid_size}, ndim={ndim}: must be at least 1")


def check_rank(x: Tensor, ndim: int) -> None:
    """Raise ValueError unless the grid has ``ndim`` axes."""
    if x.ndim != ndim + 2:
        raise ValueError(f"x has a grid of {x.ndim - 2} axes: must be ndim={ndim}")
