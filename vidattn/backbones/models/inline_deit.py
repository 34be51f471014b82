"""InLine-DeiT (Han et al., arXiv 2412.06590); the larger sizes spend the saved work on larger images."""

from __future__ import annotations

from dataclasses import dataclass

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.mixers.inline import InLineAttention
from vidattn.backbones.models._deit import deit
from vidattn.backbones.options import Options
from vidattn.backbones.registry import Family


@dataclass(frozen=True)
class InLineDeiTConfig:
    """Args:
    embed_dim: channels.
    heads: heads.
    depth: blocks.
    drop_path: greatest rate of stochastic depth.
    kernel: InLine's kernel.
    """

    embed_dim: int
    heads: int
    depth: int = 12
    drop_path: float = 0.1
    kernel: str = "identity"


def build(config: InLineDeiTConfig, options: Options) -> Backbone:
    """An InLine-DeiT."""
    dim = config.embed_dim
    return deit(
        options,
        dim,
        config.depth,
        config.drop_path,
        lambda: InLineAttention(dim, config.heads, kernel=config.kernel),
    )


FAMILY = Family(
    "inline_deit",
    "Han et al., arXiv 2412.06590",
    build,
    {
        "inline_deit_t": InLineDeiTConfig(192, 6),
        "inline_deit_s": InLineDeiTConfig(320, 10),
        "inline_deit_b": InLineDeiTConfig(384, 12),
    },
    {"inline_deit_t": "6.5M", "inline_deit_s": "16.7M", "inline_deit_b": "23.8M"},
    options={"inline_deit_s": Options(img_size=288), "inline_deit_b": Options(img_size=448)},
)
