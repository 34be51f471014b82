"""InLine-PVT (Han et al., arXiv 2412.06590).

The large one is left out: with the published depths it has 51.15M parameters, and the paper says 50.2M.
"""

from __future__ import annotations

from dataclasses import dataclass

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.mixers.inline import InLineAttention
from vidattn.backbones.models._pvt import WIDTHS, pvt
from vidattn.backbones.options import Options
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class InLinePVTConfig:
    """Args:
    depths: blocks per stage.
    drop_path: published greatest rate of stochastic depth.
    widths: channels per stage.
    heads: heads per stage.
    kernel: InLine's kernel.
    """

    depths: tuple[int, ...]
    drop_path: float
    widths: tuple[int, ...] = WIDTHS
    heads: tuple[int, ...] = (2, 4, 10, 16)
    kernel: str = "identity"


def build(config: InLinePVTConfig, options: Options) -> Backbone:
    """An InLine-PVT."""

    def mixer(stage: int) -> InLineAttention:
        return InLineAttention(
            config.widths[stage], config.heads[stage], kernel=config.kernel, split_qkv=True
        )

    return pvt(options, config.widths, config.depths, config.drop_path, mixer)


FAMILY = Family(
    "inline_pvt",
    "Han et al., arXiv 2412.06590",
    build,
    {
        "inline_pvt_t": InLinePVTConfig((2, 2, 2, 2), 0.1),
        "inline_pvt_s": InLinePVTConfig((3, 4, 6, 3), 0.1),
        "inline_pvt_m": InLinePVTConfig((3, 4, 18, 3), 0.3),
    },
    {"inline_pvt_t": "12.0M", "inline_pvt_s": "21.6M", "inline_pvt_m": "37.6M"},
)
