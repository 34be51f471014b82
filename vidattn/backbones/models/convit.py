"""ConViT (d'Ascoli et al., arXiv 2103.10697): GPSA without class token, then two blocks of self-attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.isotropic import Isotropic, IsotropicParts
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.mlp import Mlp
from vidattn.backbones.layers.patches import PatchEmbed
from vidattn.backbones.mixers.gpsa import GPSA
from vidattn.backbones.mixers.softmax import SoftmaxAttention
from vidattn.backbones.options import Options, published
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class ConViTConfig:
    """Args:
    heads: heads, of ``head_dim`` channels each.
    head_dim: channels per head.
    depth: blocks.
    local: how many of them, from the first, have GPSA; the class token joins after them.
    locality_strength: of GPSA's first values.
    drop_path: greatest rate of stochastic depth.
    patch: pixels per token and axis.
    """

    heads: int
    head_dim: int = 48
    depth: int = 12
    local: int = 10
    locality_strength: float = 1.0
    drop_path: float = 0.1
    patch: int = 16


def build(config: ConViTConfig, options: Options) -> Backbone:
    """A ConViT."""
    width = config.heads * config.head_dim
    rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), (config.depth,))[0]

    def block(index: int) -> Block:
        mixer = (
            GPSA(width, config.heads, locality_strength=config.locality_strength)
            if index < config.local
            else SoftmaxAttention(width, config.heads, qkv_bias=False)
        )
        return Block(
            [
                Branch("attn", mixer, ("norm1", nn.LayerNorm(width, eps=1e-6))),
                Branch("mlp", Mlp(width, 4 * width), ("norm2", nn.LayerNorm(width, eps=1e-6))),
            ],
            rates[index],
        )

    parts = IsotropicParts(
        width=width,
        depth=config.depth,
        stem=lambda: PatchEmbed(options.in_chans, width, config.patch),
        stride=config.patch,
        block=block,
        neck=[("norm", nn.LayerNorm(width, eps=1e-6))],
        class_token=True,
        class_from=config.local,
        positions="grid",
    )
    return Isotropic(parts, options)


FAMILY = Family(
    "convit",
    "d'Ascoli et al., arXiv 2103.10697",
    build,
    {
        "convit_tiny": ConViTConfig(4),
        "convit_small": ConViTConfig(9),
        "convit_base": ConViTConfig(16),
    },
    {"convit_tiny": "5.71M", "convit_small": "27.78M", "convit_base": "86.54M"},
    {name: (name,) for name in ("convit_tiny", "convit_small", "convit_base")},
)
