"""The skeleton of DeiT (Touvron et al., arXiv 2012.12877) with other mixers in its blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.isotropic import Isotropic, IsotropicParts
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.mlp import Mlp
from vidattn.backbones.layers.patches import PatchEmbed
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.options import Names, Options, published

MakeNorm = Callable[[int], nn.Module]
FINE_NORM: MakeNorm = partial(nn.LayerNorm, eps=1e-6)


def deit(
    options: Options,
    width: int,
    depth: int,
    drop_path: float,
    mixer: Callable[[], Mixer],
    *,
    class_token: bool = True,
    norm: MakeNorm = FINE_NORM,
    names: Names | None = None,
) -> Backbone:
    """A model with DeiT's patches of 16 pixels, learned positions and blocks.

    Args:
        options: of the model.
        width: channels.
        depth: blocks.
        drop_path: published greatest rate of stochastic depth.
        mixer: makes the mixer of a block.
        class_token: with a class token that the head reads, or without and the mean of the tokens.
        norm: makes the norms.
        names: how the authors' keys differ.
    """
    rates = drop_path_rates(published(options.drop_path_rate, drop_path), (depth,))[0]

    def block(index: int) -> Block:
        return Block(
            [
                Branch("attn", mixer(), ("norm1", norm(width))),
                Branch("mlp", Mlp(width, 4 * width), ("norm2", norm(width))),
            ],
            rates[index],
        )

    parts = IsotropicParts(
        width=width,
        depth=depth,
        stem=lambda: PatchEmbed(options.in_chans, width, 16),
        stride=16,
        block=block,
        neck=[("norm", norm(width))],
        class_token=class_token,
        positions="all" if class_token else "grid",
        names=names or Names(),
    )
    return Isotropic(parts, options)
