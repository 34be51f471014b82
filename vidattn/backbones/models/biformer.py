"""BiFormer (Zhu et al., arXiv 2303.08810)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block, Branch
from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, depthwise
from vidattn.backbones.layers.drop import drop_path_rates
from vidattn.backbones.layers.windows import pad_to
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.bi_level import AttentionLePE, BiLevelRoutingAttention
from vidattn.backbones.options import Options, published
from vidattn.backbones.pyramid import Pyramid, PyramidParts
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class BiFormerConfig:
    """Args:
    embed_dim: channels of the first stage; each further one has twice as many.
    depths: blocks per stage.
    drop_path: greatest rate of stochastic depth, the default of the authors' training script.
    topk: regions that a region sees, per stage; 0 is full attention.
    n_regions: regions per axis.
    head_dim: channels per head.
    mlp_ratio: hidden channels of the MLP over channels.
    swin: the macro design of Swin instead (BiFormer-STL): patches instead of a convolutional stem, 2x2
        merges, no convolution in the blocks.
    """

    embed_dim: int
    depths: tuple[int, ...]
    drop_path: float
    topk: tuple[int, ...] = (1, 4, 16, 0)
    n_regions: int = 7
    head_dim: int = 32
    mlp_ratio: float = 3
    swin: bool = False


class _Padded(nn.Sequential):
    """Steps on a map that is first padded behind to a multiple of ``size``."""

    def __init__(self, size: int, *steps: nn.Module) -> None:
        super().__init__(*steps)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_to(x, (self.size, self.size)))


def _stem(config: BiFormerConfig, in_chans: int) -> nn.Module:
    dim = config.embed_dim
    if config.swin:
        return _Padded(4, Conv2d(in_chans, dim, 4, 4), BatchNorm2d(dim))
    half = dim // 2
    first = Conv2d(in_chans, half, 3, 2, 1)
    return nn.Sequential(first, BatchNorm2d(half), nn.GELU(), Conv2d(half, dim, 3, 2, 1), BatchNorm2d(dim))


def _downsample(config: BiFormerConfig, dim: int) -> nn.Module:
    if config.swin:
        # the norm comes first: of a map that is not padded yet
        return nn.Sequential(BatchNorm2d(dim), _PaddedConv(dim, 2 * dim))
    return nn.Sequential(Conv2d(dim, 2 * dim, 3, 2, 1), BatchNorm2d(2 * dim))


class _PaddedConv(Conv2d):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__(dim, out, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_to(x, (2, 2)))


def _mixer(config: BiFormerConfig, dim: int, topk: int) -> Mixer:
    if topk == 0:
        return AttentionLePE(dim)
    return BiLevelRoutingAttention(dim, dim // config.head_dim, n_regions=config.n_regions, topk=topk)


def build(config: BiFormerConfig, options: Options) -> Backbone:
    """A BiFormer."""
    widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
    rates = drop_path_rates(published(options.drop_path_rate, config.drop_path), config.depths)

    def block(stage: int, index: int) -> Block:
        dim = widths[stage]
        hidden = int(dim * config.mlp_ratio)
        between = [] if config.swin else [nn.Identity()]
        mlp = nn.Sequential(nn.Linear(dim, hidden), *between, nn.GELU(), nn.Linear(hidden, dim))
        mixer = _mixer(config, dim, config.topk[stage])
        branches = [] if config.swin else [Branch("pos_embed", depthwise(dim, 3), drop=False)]
        branches += [
            Branch("attn", mixer, ("norm1", nn.LayerNorm(dim, eps=1e-6))),
            Branch("mlp", mlp, ("norm2", nn.LayerNorm(dim, eps=1e-6))),
        ]
        return Block(branches, rates[stage][index])

    parts = PyramidParts(
        widths=widths,
        depths=config.depths,
        stem=lambda: _stem(config, options.in_chans),
        downsample=lambda stage: _downsample(config, widths[stage]),
        block=block,
        neck=[("norm", BatchNorm2d(widths[-1]))],
        stem_at="downsample_layers.0",
        downsample_at="downsample_layers.{next}",
        block_at="stages.{stage}.blocks.{index}" if config.swin else "stages.{stage}.{index}",
    )
    return Pyramid(parts, options)


FAMILY = Family(
    "biformer",
    "Zhu et al., arXiv 2303.08810",
    build,
    {
        "biformer_tiny": BiFormerConfig(64, (2, 2, 8, 2), 0.1),
        "biformer_small": BiFormerConfig(64, (4, 4, 18, 4), 0.1),
        "biformer_base": BiFormerConfig(96, (4, 4, 18, 4), 0.1),
        "biformer_stl": BiFormerConfig(96, (2, 2, 6, 2), 0.1, mlp_ratio=4, swin=True),
    },
    {
        "biformer_tiny": "13142760",
        "biformer_small": "25536232",
        "biformer_base": "56804968",
        "biformer_stl": "28372552",
    },
    {f"biformer_{size}": (f"biformer_{size}_in1k",) for size in ("tiny", "small", "base")},
)
