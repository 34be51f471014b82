"""NaLaFormer (Meng et al., arXiv 2506.21137).

The XT and T sizes are left out: with the released configurations they have 6.1M and 15.9M parameters, and the
authors say 8M and 15M.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vidattn.backbones.blocks import Branch
from vidattn.backbones.layers.conv import depthwise
from vidattn.backbones.layers.mlp import ConvFeedForward
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.norm_aware import NormAwareLinearAttention, NormGatedSoftmaxAttention
from vidattn.backbones.models import ravlt
from vidattn.backbones.models._conv_stem import ConvStemConfig, InnerNorm, build_with
from vidattn.backbones.registry import Family


def branches(config: ConvStemConfig, stage: int, mixer: Mixer) -> list[Branch]:
    """RAVLT's block with a convolution in front of the feed-forward part as well, and plain linear layers."""
    dim = config.widths[stage]
    scale = (config.layer_scale[stage], (1, dim, 1, 1))
    hidden = ConvFeedForward(dim, int(dim * config.mlp_ratio), nn.Linear)
    return [
        Branch("cpe1", depthwise(dim, 3), drop=False),
        Branch("attn", mixer, ("norm1", InnerNorm(dim)), ("gamma_1", *scale)),
        Branch("cpe2", depthwise(dim, 3), drop=False),
        Branch("ffn", hidden, ("norm2", InnerNorm(dim)), ("gamma_2", *scale)),
    ]


FAMILY = Family(
    "nalaformer",
    "Meng et al., arXiv 2506.21137",
    build_with(
        {"linear": NormAwareLinearAttention, "softmax": NormGatedSoftmaxAttention}, branches, nn.Linear
    ),
    {
        f"nalaformer_{size}": replace(ravlt.FAMILY.configs[f"ravlt_{size}"], mlp_ratio=ratio)
        for size, ratio in (("s", 3.5), ("b", 4.0), ("l", 3.5))
    },
    {"nalaformer_s": "25.65M", "nalaformer_b": "52.0M", "nalaformer_l": "95.4M"},
)
