"""ViT-style image encoders: transformers' ViT, DINOv2, DINOv3 and SigLIP, and timm's VisionTransformer.

Class token and registers stand in front of the grid, see all and are seen by all, like text.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, cast

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Layer, Reading

TIMM = "VisionTransformer"
STEMS = ("ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT")
CLASSES = (
    *(f"{stem}Model" for stem in STEMS),
    *(f"{stem}ForImageClassification" for stem in STEMS),
    "SiglipVisionModel",
    "SiglipForImageClassification",
    TIMM,
)
ATTENTION = {f"{stem}{kind}" for stem in (*STEMS, "Siglip") for kind in ("Attention", "SelfAttention")}


def _layers(model: nn.Module) -> Iterator[Layer]:
    if _is_timm(model):
        for i, block in enumerate(cast(Any, model).blocks):
            yield Layer(f"blocks.{i}.attn", block.attn)
        return
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in ATTENTION}
    for name, module in found.items():
        # some versions have an attention module inside another; the inner one computes
        if not any(other.startswith(f"{name}.") for other in found):
            yield Layer(name, module)


def _is_timm(model: nn.Module) -> bool:
    return TIMM in {cls.__name__ for cls in type(model).__mro__}


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    name = "x" if _is_timm(model) else "pixel_values"
    image = arguments.get(name)
    if not isinstance(image, Tensor) or image.ndim != 4:
        raise GridUnreadable(f"{name} is no (batch, channels, height, width) image")
    height, width = _patch(model)
    padded = _is_timm(model) and getattr(cast(Any, model).patch_embed, "dynamic_img_pad", False)
    up = (height - 1, width - 1) if padded else (0, 0)
    grid = (1, (image.shape[2] + up[0]) // height, (image.shape[3] + up[1]) // width)
    return Reading({0: TokenLayout(grid, text_before=_prefix(model))})


def _patch(model: nn.Module) -> tuple[int, int]:
    size = cast(Any, model).patch_embed.patch_size if _is_timm(model) else cast(Any, model).config.patch_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _prefix(model: nn.Module) -> int:
    if _is_timm(model):
        return int(cast(Any, model).num_prefix_tokens)
    if any(cls.__name__.startswith("Siglip") for cls in type(model).__mro__):
        return 0
    return 1 + int(getattr(model.config, "num_register_tokens", 0) or 0)


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    if _is_timm(model):
        height, width = cast(Any, model).patch_embed.grid_size
        return int(height), int(width)
    size = cast(Any, model).config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    patch = _patch(model)
    return height // patch[0], width // patch[1]


FAMILY = Family("vit", CLASSES, "image", _layers, _read, _native)
