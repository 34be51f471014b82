"""The skeleton of PVT (Wang et al., arXiv 2102.12122) without class token, with other mixers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.mlp import Mlp
from vidattn.backbones.layers.patches import PatchEmbed
from vidattn.backbones.layers.positions import resize_positions
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.options import Names, Options, published
from vidattn.backbones.pyramid import Pyramid, PyramidParts

WIDTHS = (64, 128, 320, 512)
RATIOS = (8, 8, 4, 4)
MakeNorm = Callable[[int], nn.Module]
FINE_NORM: MakeNorm = partial(nn.LayerNorm, eps=1e-6)


class PositionedPatches(PatchEmbed):
    """Patches with learned positions. The authors keep the positions beside the part, as ``pos_embed1``."""

    no_decay = ("pos_embed",)

    def __init__(self, in_chans: int, dim: int, patch: int, norm: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__(in_chans, dim, patch, norm)
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dim))

    def reset_own(self) -> None:
        """First values of the positions."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + resize_positions(self.pos_embed, self.grid, (x.shape[1], x.shape[2]))


def pvt(
    options: Options,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    drop_path: float,
    mixer: Callable[[int], Mixer],
    norm: MakeNorm = FINE_NORM,
    patch_norm: MakeNorm = nn.LayerNorm,
) -> Backbone:
    """A model with PVT's patches and blocks, and the mean of its tokens in front of the head.

    Args:
        options: of the model.
        widths: channels per stage.
        depths: blocks per stage.
        drop_path: published greatest rate of stochastic depth.
        mixer: makes the mixer of a block from its stage.
        norm: makes the norms of the blocks.
        patch_norm: makes the norms of the patches.
    """
    rates = drop_path_rates(published(options.drop_path_rate, drop_path), depths)
    sides = [grid_of(options, 4 * 2**stage) for stage in range(len(depths))]

    def block(stage: int, index: int) -> Block:
        dim = widths[stage]
        return Block(
            [
                Branch("attn", mixer(stage), ("norm1", norm(dim))),
                Branch("mlp", Mlp(dim, RATIOS[stage] * dim), ("norm2", norm(dim))),
            ],
            rates[stage][index],
        )

    parts = PyramidParts(
        widths=widths,
        depths=depths,
        stem=lambda: PositionedPatches(options.in_chans, widths[0], 4, patch_norm(widths[0]), sides[0]),
        downsample=lambda i: PositionedPatches(
            widths[i], widths[i + 1], 2, patch_norm(widths[i + 1]), sides[i + 1]
        ),
        block=block,
        neck=[],
        stem_at="patch_embed1",
        downsample_at="patch_embed{next1}",
        block_at="block{stage1}.{index}",
        names=Names(renamed=((r"^pos_embed(\d)$", r"patch_embed\1.pos_embed"),)),
    )
    return Pyramid(parts, options)


def grid_of(options: Options, stride: int) -> tuple[int, int]:
    """The grid of the model's own image size at a stride, patches rounded up."""
    height, width = options.image
    return -(-height // stride), -(-width // stride)
