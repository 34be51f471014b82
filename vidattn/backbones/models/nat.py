"""NAT and DiNAT (Hassani et al., arXiv 2204.07143; Hassani and Shi, arXiv 2209.15001)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.layers.conv import Conv2d
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.mlp import Mlp
from vidattn.backbones.mixers.neighborhood import NeighborhoodAttention
from vidattn.backbones.options import Options, published
from vidattn.backbones.pyramid import Pyramid, PyramidParts
from vidattn.backbones.registry import Family

LEVELS = ((3, 4, 6, 5), (3, 4, 18, 5))
SPREAD = (8, 4, 2, 1)


@dataclass(frozen=True)
class NATConfig:
    """Args:
    embed_dim: channels of the first level; each further one has twice as many.
    depths: blocks per level.
    heads: heads of the first level; each further one has twice as many.
    mlp_ratio: hidden channels of the MLP over channels.
    drop_path: published greatest rate of stochastic depth.
    layer_scale: first value of the factor per channel; none when None.
    dilations: dilation of every second block per level; the others have 1.
    kernel_size: window.
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: int
    mlp_ratio: float
    drop_path: float
    layer_scale: float | None = None
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    kernel_size: int = 7


class ConvTokenizer(nn.Module):
    """Two 3x3 convolutions of stride 2 with nothing between them, and a layer norm."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            Conv2d(in_chans, dim // 2, 3, 2, 1),
            Conv2d(dim // 2, dim, 3, 2, 1),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class ConvDownsampler(nn.Module):
    """A 3x3 convolution of stride 2 to twice the channels, and a layer norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x))


def build(config: NATConfig, options: Options) -> Backbone:
    """A NAT or DiNAT."""
    widths = [config.embed_dim * 2**level for level in range(len(config.depths))]
    rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), config.depths)

    def block(level: int, index: int) -> Block:
        dim = widths[level]
        attention = NeighborhoodAttention(
            dim,
            config.heads * 2**level,
            config.kernel_size,
            config.dilations[level] if index % 2 else 1,
            rel_pos_bias=True,
        )
        scales = [
            None if config.layer_scale is None else (f"gamma{n}", config.layer_scale, (dim,)) for n in (1, 2)
        ]
        mlp = Mlp(dim, int(dim * config.mlp_ratio))
        return Block(
            [
                Branch("attn", attention, ("norm1", nn.LayerNorm(dim)), scales[0]),
                Branch("mlp", mlp, ("norm2", nn.LayerNorm(dim)), scales[1]),
            ],
            rates[level][index],
        )

    parts = PyramidParts(
        widths=widths,
        depths=config.depths,
        stem=lambda: ConvTokenizer(options.in_chans, widths[0]),
        downsample=lambda level: ConvDownsampler(widths[level]),
        block=block,
        neck=[("norm", nn.LayerNorm(widths[-1]))],
        block_at="levels.{stage}.blocks.{index}",
        downsample_at="levels.{stage}.downsample",
    )
    return Pyramid(parts, options)


FAMILY = Family(
    "nat",
    "Hassani et al., arXiv 2204.07143, 2209.15001",
    build,
    {
        "nat_mini": NATConfig(64, LEVELS[0], 2, 3, 0.2),
        "nat_tiny": NATConfig(64, LEVELS[1], 2, 3, 0.2),
        "nat_small": NATConfig(96, LEVELS[1], 3, 2, 0.3, 1e-5),
        "nat_base": NATConfig(128, LEVELS[1], 4, 2, 0.5, 1e-5),
        "dinat_mini": NATConfig(64, LEVELS[0], 2, 3, 0.2, None, SPREAD),
        "dinat_tiny": NATConfig(64, LEVELS[1], 2, 3, 0.2, None, SPREAD),
        "dinat_small": NATConfig(96, LEVELS[1], 3, 2, 0.3, None, SPREAD),
        "dinat_base": NATConfig(128, LEVELS[1], 4, 2, 0.5, 1e-5, SPREAD),
        "dinat_large": NATConfig(192, LEVELS[1], 6, 2, 0.35, None, SPREAD),
    },
    {
        "nat_mini": "19.98M",
        "nat_tiny": "27.90M",
        "nat_small": "50.74M",
        "nat_base": "89.77M",
        "dinat_mini": "19.98M",
        "dinat_tiny": "27.90M",
        "dinat_small": "50.72M",
        "dinat_base": "89.77M",
        "dinat_large": "200.94M",
    },
    {
        **{f"nat_{size}": (f"nat_{size}",) for size in ("mini", "tiny", "small", "base")},
        **{f"dinat_{size}": (f"dinat_{size}_in1k_224",) for size in ("mini", "tiny", "small", "base")},
        "dinat_large": ("dinat_large_in22k_224", "dinat_large_in22k_in1k_224"),
    },
)
