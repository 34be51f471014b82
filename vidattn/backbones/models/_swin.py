"""The skeleton of Swin (Liu et al., arXiv 2103.14030) with other mixers in some of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.mlp import Mlp
from vidattn.backbones.layers.patches import PatchEmbed
from vidattn.backbones.layers.windows import pad_to
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.window import WindowAttention
from vidattn.backbones.options import Names, Options, published
from vidattn.backbones.pyramid import Pyramid, PyramidParts

MakeNorm = Callable[[int], nn.Module]


class PatchMerging(nn.Module):
    """The four tokens of each 2x2 square side by side, a norm, and a linear layer to twice the channels."""

    folds = (("norm", ("reduction",)),)

    def __init__(self, dim: int, norm: MakeNorm) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to(x, (2, 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


def shifted_window(dim: int, heads: int, index: int, side: int, window: int = 7) -> Mixer:
    """Swin's own mixer: every second block is shifted, but where one window covers the map.

    Args:
        dim: channels.
        heads: heads.
        index: number of the block in its stage.
        side: extent of the stage's grid at the size that the model is made for.
        window: extent of the windows.
    """
    window = min(window, side)
    return WindowAttention(dim, heads, window_size=window, shift=window // 2 if index % 2 else 0)


def swin(
    options: Options,
    widths: Sequence[int],
    depths: tuple[int, ...],
    drop_path: float,
    mixer: Callable[[int, int], Mixer],
    norm: MakeNorm = nn.LayerNorm,
    scale: float | None = None,
) -> Backbone:
    """A model with Swin's stem, merges and blocks.

    Args:
        options: of the model.
        widths: channels per stage.
        depths: blocks per stage.
        drop_path: published greatest rate of stochastic depth.
        mixer: makes the mixer of a block from its stage and its number within.
        norm: makes the norms.
        scale: first value of a factor per channel, ``gamma1`` and ``gamma2``; none when None.
    """
    rates = drop_path_rates(published(options.drop_path_rate, drop_path), depths)

    def block(stage: int, index: int) -> Block:
        dim = widths[stage]
        scales = [None if scale is None else (f"gamma{n}", scale, (dim,)) for n in (1, 2)]
        return Block(
            [
                Branch("attn", mixer(stage, index), ("norm1", norm(dim)), scales[0]),
                Branch("mlp", Mlp(dim, 4 * dim), ("norm2", norm(dim)), scales[1]),
            ],
            rates[stage][index],
        )

    parts = PyramidParts(
        widths=widths,
        depths=depths,
        stem=lambda: PatchEmbed(options.in_chans, widths[0], 4, norm(widths[0])),
        downsample=lambda stage: PatchMerging(widths[stage], norm),
        block=block,
        neck=[("norm", norm(widths[-1]))],
        names=Names(derived=r"\.(attn_mask|relative_position_index)$"),
    )
    return Pyramid(parts, options)
