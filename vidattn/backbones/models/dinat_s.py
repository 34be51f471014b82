"""DiNAT_s: dilated neighborhood attention in Swin's skeleton (Hassani and Shi, arXiv 2209.15001)."""

from __future__ import annotations

from dataclasses import dataclass

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.mixers.neighborhood import NeighborhoodAttention
from vidattn.backbones.models._swin import swin
from vidattn.backbones.options import Options
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class DiNATsConfig:
    """Args:
    embed_dim: channels of the first stage; each further one has twice as many.
    depths: blocks per stage.
    heads: heads of the first stage; each further one has twice as many.
    drop_path: greatest rate of stochastic depth.
    dilations: dilation of every second block per stage; the others have 1.
    kernel_size: window.
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: int
    drop_path: float
    dilations: tuple[int, ...] = (8, 4, 2, 1)
    kernel_size: int = 7


def build(config: DiNATsConfig, options: Options) -> Backbone:
    """A DiNAT_s."""
    widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]

    def mixer(stage: int, index: int) -> NeighborhoodAttention:
        return NeighborhoodAttention(
            widths[stage],
            config.heads * 2**stage,
            config.kernel_size,
            config.dilations[stage] if index % 2 else 1,
            rel_pos_bias=True,
        )

    return swin(options, widths, config.depths, config.drop_path, mixer)


FAMILY = Family(
    "dinat_s",
    "Hassani and Shi, arXiv 2209.15001",
    build,
    {
        "dinat_s_tiny": DiNATsConfig(96, (2, 2, 6, 2), 3, 0.2),
        "dinat_s_small": DiNATsConfig(96, (2, 2, 18, 2), 3, 0.3),
        "dinat_s_base": DiNATsConfig(128, (2, 2, 18, 2), 4, 0.5),
        "dinat_s_large": DiNATsConfig(192, (2, 2, 18, 2), 6, 0.35),
    },
    {
        "dinat_s_tiny": "28.3M",
        "dinat_s_small": "49.6M",
        "dinat_s_base": "87.8M",
        "dinat_s_large": "196.5M",
    },
    {
        "dinat_s_tiny": ("dinat_s_tiny_in1k_224",),
        "dinat_s_small": ("dinat_s_small_in1k_224",),
        "dinat_s_base": ("dinat_s_base_in1k_224",),
        "dinat_s_large": ("dinat_s_large_in22k_224", "dinat_s_large_in1k_224"),
    },
)
