"""UNets of Stable Diffusion 1.5, 2.1 and XL and of Kolors, and ControlNets: ``attn1``, one group per level.

The grids of all levels follow from the latent's size, because a level halves it (rounding up). So one hook on
the UNet tells them all before the forward, and nothing has to be found out inside a compiled graph.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, GridUnreadable, Layer, Reading


def _halvings(model: Any) -> list[int]:
    """How often the latent was halved before each down block, and at the end for the mid block."""
    levels = [0]
    for block in model.down_blocks:
        levels.append(levels[-1] + (1 if getattr(block, "downsamplers", None) is not None else 0))
    return levels


def _blocks(model: Any) -> Iterator[tuple[str, nn.Module, int]]:
    """(name, block, level), in the order in which they run."""
    levels = _halvings(model)
    for i, block in enumerate(model.down_blocks):
        yield f"down_blocks.{i}", block, levels[i]
    if getattr(model, "mid_block", None) is not None:
        yield "mid_block", model.mid_block, levels[-1]
    level = levels[-1]
    for i, block in enumerate(getattr(model, "up_blocks", ())):
        yield f"up_blocks.{i}", block, level
        level -= 1 if getattr(block, "upsamplers", None) is not None else 0


def _layers(model: nn.Module) -> Iterator[Layer]:
    for name, block, level in _blocks(model):
        for inner, module in block.named_modules():
            if type(module).__name__ != "Transformer2DModel":
                continue
            for i, layer in enumerate(module.transformer_blocks):
                # with only_cross_attention (the x4 upscaler) attn1 looks at the text
                if not layer.only_cross_attention:
                    yield Layer(f"{name}.{inner}.transformer_blocks.{i}.attn1", layer.attn1, level)


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    latent = arguments.get("sample")
    if not isinstance(latent, Tensor) or latent.ndim != 4:
        raise GridUnreadable("sample is no (batch, channels, height, width) latent")
    height, width = latent.shape[-2:]
    return Reading({n: TokenLayout((1, *_size(height, width, n))) for n in range(_halvings(model)[-1] + 1)})


def _size(height: int, width: int, level: int) -> tuple[int, int]:
    return -(-height // 2**level), -(-width // 2**level)


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    size = getattr(model.config, "sample_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else size
    return _size(height, width, group)  # type: ignore[arg-type]


FAMILY = Family(
    "unet",
    ("UNet2DConditionModel", "ControlNetModel", "ControlNetUnionModel"),
    "image",
    _layers,
    _read,
    _native,
    guidance=UNCONDITIONAL_FIRST,
)
