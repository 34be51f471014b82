"""The encoder of SegMAN (Fu et al., CVPR 2025, arXiv 2412.11890)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, Pointwise, depthwise
from vidattn.backbones.layers.drop import DropPath, drop_path_rates
from vidattn.backbones.layers.mlp import ConvFeedForward
from vidattn.backbones.mixers.lass import LASS
from vidattn.backbones.options import Names, Options, published, truncated_normal
from vidattn.backbones.pyramid import Pyramid, PyramidParts
from vidattn.backbones.registry import Family

PROJECTION = 1024
FRESH = truncated_normal(0.02, nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class SegMANConfig:
    """Args:
    widths: channels per stage.
    depths: blocks per stage.
    heads: heads per stage.
    windows: windows per stage.
    mlp_ratios: hidden channels of the feed-forward part over channels, per stage.
    layer_scale: first value of the factor per channel; none when None.
    projection: channels in front of the classifier.
    drop_path: greatest rate of stochastic depth.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    layer_scale: float | None = None
    projection: int = PROJECTION
    drop_path: float = 0.0


class Stem(nn.Sequential):
    """Four 3x3 convolutions, the first and the third of stride 2, with batch norms, and GELUs between.

    Args:
        in_chans: channels in.
        dim: channels out.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        layers: list[nn.Module] = []
        chain = ((in_chans, dim // 2, 2), (dim // 2, dim // 2, 1), (dim // 2, dim, 2), (dim, dim, 1))
        for width, out, stride in chain:
            layers += [Conv2d(width, out, 3, stride, 1, bias=False), BatchNorm2d(out), nn.GELU()]
        super().__init__(*layers[:-1])


class ScaleShift(nn.Module):
    """A learned factor and bias per channel, stored as a depthwise 1x1 convolution's.

    Args:
        dim: channels.
        value: first factor.
    """

    no_decay = ("weight",)

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, 1, 1, 1), value))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.flatten() + self.bias


class SegMANBlock(nn.Module):
    """A 3x3 depthwise convolution in front of the mixer and of the feed-forward part, all residual.

    Args:
        mixer: a LASS.
        hidden: channels inside the feed-forward part.
        layer_scale: first factor; none when None.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, mixer: LASS, hidden: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        dim = mixer.dim
        self.cpe1 = depthwise(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.token_mixer = mixer
        self.cpe2 = depthwise(dim, 3)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvFeedForward(dim, hidden)
        scales = [nn.Identity() if layer_scale is None else ScaleShift(dim, layer_scale) for _ in range(2)]
        self.layer_scale1, self.layer_scale2 = scales
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One map in, one out."""
        x = x + self.cpe1(x)
        x = x + self.drop_path(self.layer_scale1(self.token_mixer(self.norm1(x))))
        x = x + self.cpe2(x)
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x)))), prefix


def build(config: SegMANConfig, options: Options) -> Backbone:
    """A SegMAN encoder with its classifier."""
    widths = config.widths
    rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), config.depths)

    sides = tuple(-(-extent // 32) for extent in options.image)

    def block(stage: int, index: int) -> SegMANBlock:
        last = stage == len(widths) - 1
        mixer = LASS(
            widths[stage],
            config.heads[stage],
            config.windows[stage],
            rel_pos_bias=True,
            global_mode=last,
            global_grid=(sides[0], sides[1]) if last else None,
        )
        hidden = int(config.mlp_ratios[stage] * widths[stage])
        return SegMANBlock(mixer, hidden, config.layer_scale, rates[stage][index])

    def downsample(stage: int) -> nn.Module:
        out = widths[stage + 1]
        return nn.Sequential(Conv2d(widths[stage], out, 3, 2, 1, bias=False), BatchNorm2d(out))

    parts = PyramidParts(
        widths=widths,
        depths=config.depths,
        stem=lambda: Stem(options.in_chans, widths[0]),
        downsample=downsample,
        block=block,
        neck=[
            ("classifier.0", Pointwise(widths[-1], config.projection)),
            ("classifier.1", BatchNorm2d(config.projection)),
            ("classifier.2", nn.SiLU()),
        ],
        head=Pointwise,
        block_at="stages.{stage}.blocks.{index}",
        downsample_at="stages.{stage}.downsample",
        head_at="classifier.4",
        width=config.projection,
        names=Names(
            # the authors count stages and downsamplers together
            renamed=tuple((rf"^layers\.{2 * i}\.blocks", f"stages.{i}.blocks") for i in range(4))
            + tuple((rf"^layers\.{2 * i + 1}\.", f"stages.{i}.downsample.") for i in range(3))
            + ((r"\.rpb\.0$", ".rpb"), (r"\.rpb\.1$", ".global_bias")),
            derived=r"^layers\.\d\.rope\.angle$",
        ),
        weights=FRESH,
    )
    return Pyramid(parts, options)


FAMILY = Family(
    "segman",
    "Fu et al., CVPR 2025, arXiv 2412.11890",
    build,
    {
        "segman_t": SegMANConfig((32, 64, 144, 192), (2, 2, 4, 2), (1, 2, 4, 8), (11, 9, 9, 7), (4, 4, 3, 3)),
        "segman_s": SegMANConfig(
            (64, 144, 288, 512), (2, 2, 10, 4), (2, 4, 8, 16), (11, 9, 7, 7), (4, 4, 3.4, 3.4)
        ),
        "segman_b": SegMANConfig(
            (96, 160, 364, 560), (4, 4, 18, 4), (4, 8, 13, 20), (11, 9, 7, 7), (4, 4, 3, 3), 1e-6
        ),
        "segman_l": SegMANConfig(
            (96, 192, 432, 640), (4, 4, 28, 4), (4, 8, 12, 20), (11, 9, 7, 7), (4, 4, 3, 3), 1e-6
        ),
    },
    {"segman_t": "3.51M", "segman_s": "25.51M", "segman_b": "45.02M", "segman_l": "80.99M"},
)
