"""vidattn: sparse and linear attention for vision and video diffusion, set into a diffusers pipeline with one
line.

vidattn.patch(pipe, "neighborhood")
image = pipe("a red fox", height=2048, width=2048).images[0]
print(vidattn.report(pipe))
vidattn.unpatch(pipe)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vidattn import patterns
from vidattn.attention import attention, merge_attentions
from vidattn.layout import TokenLayout
from vidattn.linear import linear_attention
from vidattn.neighborhood import na1d, na2d, na3d

if TYPE_CHECKING:
    from vidattn.patches import patch, patched, report, supported, unpatch

__version__ = "0.1.0"

__all__ = [
    "TokenLayout",
    "__version__",
    "attention",
    "linear_attention",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "patch",
    "patched",
    "patterns",
    "report",
    "supported",
    "unpatch",
]

_PATCHES = ("patch", "patched", "report", "supported", "unpatch")


def __getattr__(name: str) -> Any:
    # the patches are loaded when they are first asked for: the functional API needs none of their code
    if name in _PATCHES:
        from vidattn import patches

        return getattr(patches, name)
    raise AttributeError(f"module 'vidattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PATCHES})
