"""MAViT (Fan et al., arXiv 2507.00698)."""

from __future__ import annotations

from dataclasses import replace

from vidattn.backbones.mixers.gated import GatedSoftmaxAttention
from vidattn.backbones.mixers.mala import MALA
from vidattn.backbones.models import ravlt
from vidattn.backbones.models._conv_stem import build_with
from vidattn.backbones.registry import Family

FAMILY = Family(
    "mavit",
    "Fan et al., arXiv 2507.00698",
    build_with({"linear": MALA, "softmax": GatedSoftmaxAttention}),
    {
        name.replace("ravlt", "mavit"): replace(config, projection=2560 if name == "ravlt_l" else 2048)
        for name, config in ravlt.FAMILY.configs.items()
    },
    {"mavit_t": "16.45M", "mavit_s": "27.14M", "mavit_b": "49.79M", "mavit_l": "97.77M"},
)
