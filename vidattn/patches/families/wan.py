"""Wan 2.1 and 2.2 (VACE and Animate too) and ChronoEdit: self-attention without text over (T, H, W).

The grid is read from the latent's shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Layer, Reading


def _layers(model: nn.Module) -> Iterator[Layer]:
    # VACE's control blocks work on tokens of the same grid; they run before the main blocks
    for stack in ("vace_blocks", "blocks"):
        for i, block in enumerate(getattr(model, stack, ())):
            yield Layer(f"{stack}.{i}.attn1", block.attn1)


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    latent = arguments.get("hidden_states")
    if not isinstance(latent, Tensor) or latent.ndim != 5:
        raise GridUnreadable("hidden_states is no (batch, channels, frames, height, width) latent")
    patch: tuple[int, int, int] = model.config.patch_size  # type: ignore[assignment, union-attr]
    frames, height, width = (n // p for n, p in zip(latent.shape[2:], patch, strict=True))
    return Reading({0: TokenLayout((frames, height, width))})


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 30, 52  # 480 x 832


FAMILY = Family(
    "wan",
    (
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "WanAnimateTransformer3DModel",
        "ChronoEditTransformer3DModel",
    ),
    "video",
    _layers,
    _read,
    _native,
)
