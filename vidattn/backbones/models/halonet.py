"""HaloNet-H (Vaswani et al., CVPR 2021, arXiv 2103.12731).

There are no authors' weights or code. The names are timm's; the activation is a ReLU. The value ratio widens
the values only, which alone gives the published numbers of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, Pointwise
from vidattn.backbones.layers.drop import DropPath, drop_path_rates
from vidattn.backbones.mixers.halo import HaloAttention
from vidattn.backbones.options import Options, published
from vidattn.backbones.pyramid import Pyramid, PyramidParts
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class HaloNetConfig:
    """Args:
    block_size: extent of the blocks of queries.
    halo_size: tokens around a block.
    value_ratio: channels of the values over the stage's width.
    out_ratio: channels of the stage's output over its width.
    third: blocks of the third stage.
    final: channels of a last pointwise convolution; none when 0.
    widths: widths of the stages.
    depths: blocks of the other stages.
    heads: heads per stage.
    """

    block_size: int
    halo_size: int
    value_ratio: float
    out_ratio: float
    third: int
    final: int = 0
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: int = 3
    heads: tuple[int, ...] = (4, 8, 8, 8)


class PointwiseNorm(nn.Module):
    """A 1x1 convolution without bias and a batch norm.

    Args:
        width: channels in.
        out: channels out.
        stride: keeps every so-many-th token per axis.
    """

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Pointwise(width, out, bias=False)
        self.bn = BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x[:, :: self.stride, :: self.stride]))


class FinalConv(PointwiseNorm):
    """The last convolution, with its ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Stem(nn.Module):
    """A 7x7 convolution of stride 2 and a max pool of stride 2.

    Args:
        in_chans: channels in.
        width: channels out.
    """

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_chans, width, 7, 2, 3, bias=False)
        self.bn = BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        return F.max_pool2d(x.movedim(-1, 1), 3, 2, 1).movedim(1, -1)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + expand(relu(bn(attention(relu(reduce(x))))))).

    Args:
        width: channels in.
        attention: from the stage's width to the values' channels.
        out: channels out.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, width: int, attention: HaloAttention, out: int, drop_path: float) -> None:
        super().__init__()
        self.conv1_1x1 = PointwiseNorm(width, attention.dim)
        self.self_attn = attention
        self.post_attn = BatchNorm2d(attention.dim_out)
        self.conv3_1x1 = PointwiseNorm(attention.dim_out, out)
        same = width == out and attention.stride == 1
        self.shortcut = None if same else PointwiseNorm(width, out, attention.stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One map in, one out."""
        inner = F.relu(self.post_attn(self.self_attn(F.relu(self.conv1_1x1(x)))))
        short = x if self.shortcut is None else self.shortcut(x)
        return F.relu(short + self.drop_path(self.conv3_1x1(inner))), prefix


def build(config: HaloNetConfig, options: Options) -> Backbone:
    """A HaloNet. The stages after the first begin with an attention of stride 2."""
    depths = tuple(config.third if stage == 2 else config.depths for stage in range(len(config.widths)))
    outs = [int(width * config.out_ratio) for width in config.widths]
    rates = drop_path_rates(published(options.drop_path_rate, 0.0), depths)

    def block(stage: int, index: int) -> Bottleneck:
        width = config.widths[stage]
        attention = HaloAttention(
            width,
            config.heads[stage],
            dim_out=int(width * config.value_ratio),
            qk_dim=width,
            block_size=config.block_size,
            halo_size=config.halo_size,
            stride=2 if stage and not index else 1,
        )
        before = outs[stage] if index else outs[stage - 1] if stage else config.widths[0]
        return Bottleneck(before, attention, outs[stage], rates[stage][index])

    parts = PyramidParts(
        widths=outs,
        depths=depths,
        stem=lambda: Stem(options.in_chans, config.widths[0]),
        downsample=lambda stage: nn.Identity(),
        block=block,
        neck=[("final_conv", FinalConv(outs[-1], config.final))] if config.final else [],
        stem_at="stem",
        block_at="stages.{stage}.{index}",
        downsample_at="stages.{stage}.downsample",
        head_at="head.fc",
        width=config.final,
    )
    return Pyramid(parts, options)


FAMILY = Family(
    "halonet",
    "Vaswani et al., CVPR 2021, arXiv 2103.12731",
    build,
    {
        "halonet_h0": HaloNetConfig(8, 3, 1, 0.5, 7),
        "halonet_h1": HaloNetConfig(8, 3, 1, 1, 10),
        "halonet_h2": HaloNetConfig(8, 3, 1, 1.25, 11),
        "halonet_h3": HaloNetConfig(10, 3, 1, 1.5, 12, 1024),
        "halonet_h4": HaloNetConfig(12, 2, 1, 3, 12, 1280),
        "halonet_h5": HaloNetConfig(14, 2, 2.5, 2, 23, 1536),
        "halonet_h6": HaloNetConfig(8, 4, 3, 2.75, 24, 1536),
        "halonet_h7": HaloNetConfig(10, 3, 4, 3.5, 26, 2048),
    },
    {
        "halonet_h0": "5.50M",
        "halonet_h1": "8.10M",
        "halonet_h2": "9.41M",
        "halonet_h3": "11.84M",
        "halonet_h4": "19.10M",
        "halonet_h5": "30.72M",
        "halonet_h6": "43.46M",
        "halonet_h7": "67.43M",
    },
    options={
        f"halonet_h{n}": Options(img_size=size)
        for n, size in enumerate((256, 256, 256, 320, 384, 448, 512, 600))
    },
)
