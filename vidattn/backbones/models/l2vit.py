"""L2ViT (Zheng, arXiv 2501.16182).

Windows leave the padding of grids that they do not divide out; the authors' zeros take part. At 224 pixels
there is no padding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, depthwise
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.local_concentration import LocalConcentration
from vidattn.backbones.layers.mlp import Mlp
from vidattn.backbones.layers.windows import pad_to
from vidattn.backbones.mixers.relu_linear import ReLULinearAttention
from vidattn.backbones.mixers.window import WindowAttention
from vidattn.backbones.options import Names, Options, published, truncated_normal
from vidattn.backbones.pyramid import Pyramid, PyramidParts
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class L2ViTConfig:
    """Args:
    embed_dim: channels of the first stage; each further one has twice as many.
    depths: blocks per stage.
    heads: heads of the first stage; each further one has twice as many.
    drop_path: greatest rate of stochastic depth, the default of the authors' models.
    window: extent of the windows in the even blocks.
    min_norm: lower bound of the normaliser in the odd blocks.
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: int
    drop_path: float = 0.0
    window: int = 7
    min_norm: float = 100.0


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2 with batch norm, ReLU between them; then a layer norm."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.proj = nn.Sequential(
            Conv2d(in_chans, half, 3, 2, 1),
            BatchNorm2d(half),
            nn.ReLU(),
            Conv2d(half, dim, 3, 2, 1),
            BatchNorm2d(dim),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(pad_to(x, (4, 4))))


class Downsample(nn.Module):
    """A layer norm and a 2x2 convolution of stride 2."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = Conv2d(dim, out, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(pad_to(self.norm(x), (2, 2)))


def branches(config: L2ViTConfig, stage: int, index: int) -> list[Branch]:
    """Even blocks attend in windows, odd ones globally."""
    dim, heads = config.embed_dim * 2**stage, config.heads * 2**stage
    first = Branch("cpe_0", depthwise(dim, 3), drop=False)
    last = Branch("mlp", Mlp(dim, 4 * dim), ("norm2", nn.LayerNorm(dim)))
    if index % 2 == 0:
        local = WindowAttention(dim, heads, window_size=config.window, rel_pos_bias=False)
        attention = Branch("attn", local, ("norm1", nn.LayerNorm(dim)))
        return [first, attention, Branch("cpe_1", depthwise(dim, 3), drop=False), last]
    linear = ReLULinearAttention(dim, heads, min_norm=config.min_norm)
    attention = Branch("attn", linear, ("norm1", nn.LayerNorm(dim)))
    return [first, attention, Branch("local_mp", LocalConcentration(dim), ("norm3", nn.LayerNorm(dim))), last]


def build(config: L2ViTConfig, options: Options) -> Backbone:
    """An L2ViT."""
    widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
    rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), config.depths)
    parts = PyramidParts(
        widths=widths,
        depths=config.depths,
        stem=lambda: Stem(options.in_chans, widths[0]),
        downsample=lambda stage: Downsample(widths[stage], widths[stage + 1]),
        block=lambda stage, index: Block(branches(config, stage, index), rates[stage][index]),
        neck=[("norm", nn.LayerNorm(widths[-1]))],
        stem_at="downsample_layers.0",
        downsample_at="downsample_layers.{next}",
        block_at="stages.{stage}.{index}",
        names=Names(
            renamed=(
                (r"\.cpe\.(\d)\.proj\.", r".cpe_\1."),
                (r"^downsample_layers\.0\.proj\.proj\.", "downsample_layers.0.proj."),
            )
        ),
        weights=truncated_normal(0.02, nn.Linear, nn.Conv2d),
    )
    return Pyramid(parts, options)


FAMILY = Family(
    "l2vit",
    "Zheng, arXiv 2501.16182",
    build,
    {
        "l2vit_t": L2ViTConfig(96, (2, 2, 6, 2), 3),
        "l2vit_s": L2ViTConfig(96, (2, 2, 18, 2), 3),
        "l2vit_b": L2ViTConfig(128, (2, 2, 18, 2), 4, 0.3),
    },
    {"l2vit_t": "28.60M", "l2vit_s": "50.20M", "l2vit_b": "88.58M"},
)
