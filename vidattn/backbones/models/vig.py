"""ViG (Liao et al., arXiv 2405.18425), the isotropic models."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.isotropic import Isotropic, IsotropicParts
from vidattn.backbones.layers.conv import Conv2d
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.windows import pad_to
from vidattn.backbones.mixers.bidirectional_gated import BidirectionalGatedLinearAttention
from vidattn.backbones.options import Options, published
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class ViGConfig:
    """Args:
    embed_dim: channels.
    heads: heads.
    drop_path: published greatest rate of stochastic depth.
    depth: blocks.
    activations: SiLU after the mixer's convolution and before its last projection.
    """

    embed_dim: int
    heads: int
    drop_path: float
    depth: int = 12
    activations: bool = False


class Stem(nn.Module):
    """A 9x9 convolution of stride 8 and a 3x3 one of stride 2, each with layer norm, SiLU between them."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.proj = nn.Sequential(
            Conv2d(in_chans, half, 9, 8, 1),
            nn.LayerNorm(half),
            nn.SiLU(),
            Conv2d(half, dim, 3, 2, 1),
            nn.LayerNorm(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(pad_to(x, (16, 16)))


class GatedMlp(nn.Module):
    """down_proj(SiLU(a) * b) with [a, b] = gate_proj(x), without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * value)


def normal(module: nn.Module) -> None:
    """First values: linear layers from a normal distribution, the mixers' their own."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, BidirectionalGatedLinearAttention):
        module.reset_own()


def build(config: ViGConfig, options: Options) -> Backbone:
    """A ViG."""
    dim = config.embed_dim
    # 8/3 of the channels, up to a multiple of 256
    hidden = 256 * -(-(8 * dim // 3) // 256)
    rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), (config.depth,))[0]

    def block(index: int) -> Block:
        mixer = BidirectionalGatedLinearAttention(dim, config.heads, activations=config.activations)
        return Block(
            [
                Branch("attn", mixer, ("attn_norm", nn.RMSNorm(dim, eps=1e-6))),
                Branch("mlp", GatedMlp(dim, hidden), ("mlp_norm", nn.RMSNorm(dim, eps=1e-6))),
            ],
            rates[index],
        )

    parts = IsotropicParts(
        width=dim,
        depth=config.depth,
        stem=lambda: Stem(options.in_chans, dim),
        stride=16,
        block=block,
        neck=[("norm", nn.RMSNorm(dim, eps=1e-6))],
        weights=normal,
    )
    return Isotropic(parts, options)


FAMILY = Family(
    "vig",
    "Liao et al., arXiv 2405.18425",
    build,
    {
        "vig_t": ViGConfig(192, 3, 0.1, activations=True),
        "vig_s": ViGConfig(384, 6, 0.2),
        "vig_b": ViGConfig(768, 12, 0.5),
    },
    {"vig_t": "5.83M", "vig_s": "22.6M", "vig_b": "89.0M"},
)
