"""InLine-Swin (Han et al., arXiv 2412.06590).

The authors' InLine layers work in windows as large as the map; here they are global on every grid, which is
the same at the published sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.inline import InLineAttention
from vidattn.backbones.models._pvt import grid_of
from vidattn.backbones.models._swin import shifted_window, swin
from vidattn.backbones.options import Options
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class InLineSwinConfig:
    """Args:
    embed_dim: channels of the first stage; each further one has twice as many.
    depths: blocks per stage.
    heads: heads of the first stage; each further one has twice as many.
    drop_path: published greatest rate of stochastic depth.
    inline: how many blocks per stage, from the first on, have InLine attention; the others have windows.
    window: extent of the windows.
    kernel: InLine's kernel.
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: int
    drop_path: float
    inline: tuple[int, ...]
    window: int = 7
    kernel: str = "identity"


def build(config: InLineSwinConfig, options: Options) -> Backbone:
    """An InLine-Swin."""
    widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]

    def mixer(stage: int, index: int) -> Mixer:
        heads = config.heads * 2**stage
        if index < config.inline[stage]:
            return InLineAttention(widths[stage], heads, kernel=config.kernel)
        side = min(grid_of(options, 4 * 2**stage))
        return shifted_window(widths[stage], heads, index, side, config.window)

    return swin(options, widths, config.depths, config.drop_path, mixer)


FAMILY = Family(
    "inline_swin",
    "Han et al., arXiv 2412.06590",
    build,
    {
        "inline_swin_t": InLineSwinConfig(96, (2, 2, 6, 2), 3, 0.2, (2, 2, 6, 0)),
        "inline_swin_s": InLineSwinConfig(96, (2, 2, 18, 2), 3, 0.3, (2, 2, 0, 0)),
        "inline_swin_b": InLineSwinConfig(128, (2, 2, 18, 2), 4, 0.5, (2, 2, 2, 0)),
    },
    {"inline_swin_t": "29.2M", "inline_swin_s": "50M", "inline_swin_b": "88M"},
)
