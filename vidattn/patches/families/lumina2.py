"""Lumina 2: joint attention, each item's real caption tokens in front of its image; the noise refiner sees
the image alone. Captions of different lengths in one batch put the images at different places: dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Layer, Reading
from vidattn.patches.families._image import latent_grid, native_sample
from vidattn.patches.values import once_per_tensor


def _layers(model: nn.Module) -> Iterator[Layer]:
    for stack, group in (("noise_refiner", "image"), ("layers", "joint")):
        for i, block in enumerate(cast(Any, getattr(model, stack))):
            yield Layer(f"{stack}.{i}.attn", block.attn, group)


@once_per_tensor
def _lengths(mask: Tensor) -> list[int]:
    return [int(n) for n in mask.detach().sum(1).tolist()]


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    grid, mask = latent_grid(model, arguments), arguments.get("encoder_attention_mask")
    if not isinstance(mask, Tensor) or mask.is_meta:
        raise GridUnreadable("encoder_attention_mask is needed to read the caption lengths")
    joint: TokenLayout | str = "captions of different lengths in one batch"
    lengths = _lengths(mask)
    if len(set(lengths)) == 1:
        joint = TokenLayout(grid, text_before=lengths[0])
    return Reading({"image": TokenLayout(grid), "joint": joint})


FAMILY = Family(
    "lumina2",
    ("Lumina2Transformer2DModel",),
    "image",
    _layers,
    _read,
    native_sample,
    timestep_scale=-1000.0,  # 1 - t / 1000
    timestep_offset=1000.0,
)
