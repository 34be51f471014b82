"""LITv2 (Pan et al., arXiv 2205.13213)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, depthwise
from vidattn.backbones.layers.deformable import DeformableConv2d
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.patches import PatchEmbed
from vidattn.backbones.layers.windows import pad_to
from vidattn.backbones.mixers.hilo import HiLoAttention
from vidattn.backbones.options import Options, published, truncated_normal
from vidattn.backbones.pyramid import Pyramid, PyramidParts
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class LITv2Config:
    """Args:
    embed_dim: channels of the first stage; each further one has twice as many.
    depths: blocks per stage.
    heads: heads of the first stage; each further one has twice as many.
    drop_path: published greatest rate of stochastic depth.
    windows: extent of HiLo's windows per stage; 0 is a stage without attention.
    alpha: share of the heads that see the windows' means.
    mlp_ratio: hidden channels of the MLP over channels.
    downsample: "deformable" (the authors') or "conv"; with zero offsets they are the same.
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: int
    drop_path: float
    windows: tuple[int, ...] = (0, 0, 2, 1)
    alpha: float = 0.9
    mlp_ratio: float = 4
    downsample: str = "deformable"


class _Inner(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = depthwise(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)


class DWMlp(nn.Module):
    """fc2(GELU(dwconv3(fc1(x)))), which gives the model its positions.

    Args:
        dim: channels.
        hidden: channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _Inner(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def reset_own(self) -> None:
        """First values of the convolution: nine weights per channel."""
        conv = self.dwconv.dwconv
        nn.init.normal_(conv.weight, std=math.sqrt(2 / 9))  # type: ignore[arg-type]
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Downsample(nn.Module):
    """A (deformable) 2x2 convolution of stride 2 to twice the channels, batch norm and GELU.

    Args:
        dim: channels.
        kind: "deformable" or "conv".
    """

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        if kind not in ("deformable", "conv"):
            raise ValueError(f"downsample={kind!r}: must be 'deformable' or 'conv'")
        self.dconv = DeformableConv2d(dim, 2 * dim, 2) if kind == "deformable" else Conv2d(dim, 2 * dim, 2, 2)
        self.norm_layer = BatchNorm2d(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm_layer(self.dconv(pad_to(x, (2, 2)))))


def build(config: LITv2Config, options: Options) -> Backbone:
    """A LITv2."""
    widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
    rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), config.depths)

    def block(stage: int, index: int) -> Block:
        dim, window = widths[stage], config.windows[stage]
        branches = [
            Branch("mlp", DWMlp(dim, int(dim * config.mlp_ratio)), ("norm2", nn.LayerNorm(dim))),
        ]
        if window:
            mixer = HiLoAttention(dim, config.heads * 2**stage, window_size=window, alpha=config.alpha)
            branches.insert(0, Branch("attn", mixer, ("norm1", nn.LayerNorm(dim))))
        return Block(branches, rates[stage][index])

    parts = PyramidParts(
        widths=widths,
        depths=config.depths,
        stem=lambda: PatchEmbed(options.in_chans, widths[0], 4, nn.LayerNorm(widths[0])),
        downsample=lambda stage: Downsample(widths[stage], config.downsample),
        block=block,
        neck=[("norm", nn.LayerNorm(widths[-1]))],
        weights=truncated_normal(0.02),
    )
    return Pyramid(parts, options)


FAMILY = Family(
    "litv2",
    "Pan et al., arXiv 2205.13213",
    build,
    {
        "litv2_s": LITv2Config(96, (2, 2, 6, 2), 3, 0.2),
        "litv2_m": LITv2Config(96, (2, 2, 18, 2), 3, 0.3),
        "litv2_b": LITv2Config(128, (2, 2, 18, 2), 4, 0.5),
    },
    {"litv2_s": "27.84M", "litv2_m": "48.83M", "litv2_b": "86.52M"},
    {"litv2_s": ("litv2_s",), "litv2_m": ("litv2_m",), "litv2_b": ("litv2_b", "litv2_b_384")},
)
