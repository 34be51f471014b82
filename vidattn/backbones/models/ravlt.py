"""RAVLT (Fan et al., arXiv 2411.07635)."""

from __future__ import annotations

from vidattn.backbones.mixers.gated import GatedSoftmaxAttention
from vidattn.backbones.mixers.rala import RALA
from vidattn.backbones.models._conv_stem import ConvStemConfig, build_with
from vidattn.backbones.registry import Family

FAMILY = Family(
    "ravlt",
    "Fan et al., arXiv 2411.07635",
    build_with({"linear": RALA, "softmax": GatedSoftmaxAttention}),
    {
        "ravlt_t": ConvStemConfig((64, 128, 256, 512), (2, 2, 6, 2), (1, 2, 4, 8), 0.1),
        "ravlt_s": ConvStemConfig((64, 128, 320, 512), (3, 5, 9, 3), (1, 2, 5, 8), 0.15),
        "ravlt_b": ConvStemConfig(
            (96, 192, 384, 512), (4, 6, 12, 6), (1, 2, 6, 8), 0.4, (1.0, 1.0, 1e-6, 1e-6)
        ),
        "ravlt_l": ConvStemConfig((96, 192, 448, 640), (4, 7, 19, 8), (1, 2, 7, 10), 0.55, (1e-6,) * 4),
    },
    {"ravlt_t": "14.90M", "ravlt_s": "25.59M", "ravlt_b": "48.24M", "ravlt_l": "95.24M"},
    {f"ravlt_{size}": (f"RAVLT_{size.upper()}",) for size in "tsbl"},
)
