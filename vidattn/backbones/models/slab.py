"""SLAB on DeiT and Swin (Guo et al., arXiv 2405.11582).

SLAB-PVT and SLAB-CSwin are left out: the authors publish no parameter count for the one, and the other needs
CSwin's stripes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.layers.progressive import progressive
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.simplified_linear import SimplifiedLinearAttention
from vidattn.backbones.models._deit import deit
from vidattn.backbones.models._pvt import grid_of
from vidattn.backbones.models._swin import shifted_window, swin
from vidattn.backbones.options import Names, Options
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class SLABConfig:
    """Args:
    embed_dim: channels, of the first stage in Swin.
    depths: blocks per stage; one entry is a DeiT.
    heads: heads, of the first stage in Swin.
    drop_path: published greatest rate of stochastic depth.
    linear: per stage, whether its mixer is linear; the others have windows.
    window: extent of the windows.
    steps: training steps until the norms are batch norms.
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: int
    drop_path: float
    linear: tuple[bool, ...] = (True, True, False, False)
    window: int = 7
    steps: int = 60_000


def build(config: SLABConfig, options: Options) -> Backbone:
    """A SLAB model."""
    if len(config.depths) == 1:
        grid = grid_of(options, 16)
        return deit(
            options,
            config.embed_dim,
            config.depths[0],
            config.drop_path,
            lambda: SimplifiedLinearAttention(config.embed_dim, config.heads, grid=grid),
            class_token=False,
            norm=progressive(config.steps),
            # the authors' model has a class token that nothing reads
            names=Names(derived=r"^cls_token$"),
        )
    widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]

    def mixer(stage: int, index: int) -> Mixer:
        grid, heads = grid_of(options, 4 * 2**stage), config.heads * 2**stage
        if config.linear[stage]:
            return SimplifiedLinearAttention(widths[stage], heads, grid=grid)
        return shifted_window(widths[stage], heads, index, min(grid), config.window)

    norm = progressive(config.steps, eps=1e-5)
    return swin(options, widths, config.depths, config.drop_path, mixer, norm)


FAMILY = Family(
    "slab",
    "Guo et al., arXiv 2405.11582",
    build,
    {
        "slab_deit_t": SLABConfig(192, (12,), 3, 0.0),
        "slab_deit_s": SLABConfig(384, (12,), 6, 0.0),
        "slab_swin_t": SLABConfig(96, (2, 2, 6, 2), 3, 0.2),
        "slab_swin_s": SLABConfig(96, (2, 2, 18, 2), 3, 0.3),
    },
    {"slab_deit_t": "6.2M", "slab_deit_s": "23.0M", "slab_swin_t": "29.2M", "slab_swin_s": "50.6M"},
    {
        "slab_deit_t": ("slab_deit_tiny",),
        "slab_deit_s": ("slab_deit_small",),
        "slab_swin_t": ("slab_swin_tiny",),
        "slab_swin_s": ("slab_swin_small",),
    },
)
