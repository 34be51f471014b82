"""Qwen-Image, Edit, Layered and ControlNets: joint attention, text first; ``img_shapes`` tells the grids.

Edit appends reference images behind the target: those tokens see all and are seen by all, like text. Layered
makes several pictures of one size at once: the layers are the grid's first axis.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._image import native_of, stack_layers, text_length
from vidattn.patches.values import padded


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    image, shapes = arguments.get("hidden_states"), arguments.get("img_shapes")
    if not isinstance(image, Tensor) or not shapes:
        raise GridUnreadable("hidden_states and img_shapes are needed to read the grid")
    # the model itself goes by the first item's shapes
    first: Any = shapes[0] if isinstance(shapes, list) else shapes
    parts = [tuple(map(int, shape)) for shape in (first if isinstance(first, list) else [first])]
    if sum(map(prod, parts)) != image.shape[1]:
        raise GridUnreadable(f"img_shapes {parts} are not {image.shape[1]} image tokens")
    frames, height, width = parts[0]
    if cast(Any, model).config.get("use_layer3d_rope"):
        frames *= next((n for n, part in enumerate(parts) if part != parts[0]), len(parts))
    references = image.shape[1] - frames * height * width
    layout = TokenLayout((frames, height, width), text_length(arguments), references)
    layout, reason = padded(layout, arguments.get("encoder_hidden_states_mask"))
    note = f"{references} reference tokens see all and are seen by all" if references else ""
    return Reading({0: layout}, note, reason)


FAMILY = Family(
    "qwen_image",
    ("QwenImageTransformer2DModel", "QwenImageControlNetModel"),
    "image",
    stack_layers("transformer_blocks"),
    _read,
    native_of(83, 83),  # 1328 px
    timestep_scale=1000.0,
)
