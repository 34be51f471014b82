"""The skeleton that RAVLT, MAViT and NaLaFormer share: convolutional stem, merges, blocks and neck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, Pointwise, depthwise
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.mlp import ConvFeedForward
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.options import Names, Options, published, truncated_normal
from vidattn.backbones.pyramid import Pyramid, PyramidParts


@dataclass(frozen=True)
class ConvStemConfig:
    """Args:
    widths: channels per stage.
    depths: blocks per stage.
    heads: heads per stage.
    drop_path: published greatest rate of stochastic depth.
    layer_scale: first value of the factor per channel, per stage.
    projection: channels between the last stage and the head.
    mixers: name of the mixer per stage: the family's own, or "softmax".
    mlp_ratio: hidden channels of the feed-forward part over channels.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    drop_path: float
    layer_scale: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    projection: int = 1024
    mixers: tuple[str, ...] = ("linear", "linear", "softmax", "softmax")
    mlp_ratio: float = 3.5


class Stem(nn.Module):
    """Four 3x3 convolutions, the first and the last of stride 2, each with batch norm, GELU between them."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        widths, strides = (in_chans, dim // 2, dim // 2, dim // 2, dim), (2, 1, 1, 2)
        steps: list[nn.Module] = []
        for i, stride in enumerate(strides):
            steps += [Conv2d(widths[i], widths[i + 1], 3, stride, 1), BatchNorm2d(widths[i + 1]), nn.GELU()]
        self.proj = nn.Sequential(*steps[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PatchMerging(nn.Module):
    """A 3x3 convolution of stride 2, and batch norm."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.reduction = Conv2d(dim, out, 3, 2, 1)
        self.norm = BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x))


class InnerNorm(nn.Module):
    """A layer norm whose parameters stand one level deeper, as in the authors' ``LayerNorm2d``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class NormSiLU(BatchNorm2d):
    """Batch norm and SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


Branches = Callable[[ConvStemConfig, int, Mixer], Sequence[Branch]]


def ravlt_branches(config: ConvStemConfig, stage: int, mixer: Mixer) -> Sequence[Branch]:
    """The block of RAVLT and MAViT."""
    dim, scale = config.widths[stage], config.layer_scale[stage]
    return [
        Branch("pos", depthwise(dim, 3), drop=False),
        Branch("attn", mixer, ("norm1", InnerNorm(dim)), ("gamma_1", scale, (1, dim, 1, 1))),
        Branch(
            "ffn",
            ConvFeedForward(dim, int(dim * config.mlp_ratio)),
            ("norm2", InnerNorm(dim)),
            ("gamma_2", scale, (1, dim, 1, 1)),
        ),
    ]


def build_with(
    mixers: dict[str, Callable[[int, int], Mixer]],
    branches: Branches = ravlt_branches,
    linear: Callable[[int, int], nn.Module] = Pointwise,
) -> Callable[[ConvStemConfig, Options], Backbone]:
    """A builder of models.

    Args:
        mixers: what the stages take by name.
        branches: makes a block's branches from the configuration, the stage and a mixer.
        linear: makes the linear layer between the last stage and the head.
    """

    def build(config: ConvStemConfig, options: Options) -> Backbone:
        unknown = set(config.mixers) - set(mixers)
        if unknown or len(config.mixers) != len(config.depths):
            raise ValueError(
                f"mixers={config.mixers!r}: must be {len(config.depths)} of"
                f" {', '.join(repr(m) for m in mixers)}"
            )
        rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), config.depths)

        def block(stage: int, index: int) -> Block:
            mixer = mixers[config.mixers[stage]](config.widths[stage], config.heads[stage])
            return Block(branches(config, stage, mixer), rates[stage][index])

        return Pyramid(_parts(config, options, block, linear), options)

    return build


def _parts(
    config: ConvStemConfig,
    options: Options,
    block: Callable[[int, int], Block],
    linear: Callable[[int, int], nn.Module],
) -> PyramidParts:
    widths = config.widths
    return PyramidParts(
        widths=widths,
        depths=config.depths,
        stem=lambda: Stem(options.in_chans, widths[0]),
        downsample=lambda stage: PatchMerging(widths[stage], widths[stage + 1]),
        block=block,
        neck=[("proj", linear(widths[-1], config.projection)), ("norm", NormSiLU(config.projection))],
        head=Pointwise,
        width=config.projection,
        names=Names(derived=r"\.RoPE\.angle$"),
        weights=truncated_normal(0.02, nn.Conv2d),
    )
