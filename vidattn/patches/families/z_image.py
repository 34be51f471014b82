"""Z-Image: joint attention, the image first, filled up with learned tokens to a multiple of 32, then the
caption, filled up likewise, then padding where captions of a batch differ. Refiners see the image alone. A
ControlNet has its transformer's noise refiner, and control layers that may be its own refiner as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import CONDITIONAL_FIRST, Arguments, Family, GridUnreadable, Layer, Reading
from vidattn.patches.families._image import native_of

_MULTIPLE = 32


def _layers(model: nn.Module) -> Iterator[Layer]:
    groups = {"control_noise_refiner": "image", "noise_refiner": "image"}
    for stack, group in (groups | {"layers": "joint", "control_layers": "joint"}).items():
        for i, block in enumerate(cast(Any, getattr(model, stack, None) or ())):
            yield Layer(f"{stack}.{i}.attention", block.attention, group)


def _filled(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    images, captions = arguments.get("x"), arguments.get("cap_feats")
    if not isinstance(images, list) or not images or not captions:
        raise GridUnreadable("x and cap_feats are needed to read the grid")
    if not all(isinstance(image, Tensor) for image in images):
        raise GridUnreadable("several images per item (omni mode)")
    if len({image.shape for image in images}) != 1:
        raise GridUnreadable("images of different sizes in one batch")
    space, time = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    _, frames, height, width = images[0].shape
    alone = TokenLayout((frames // time, height // space, width // space))
    fill = _filled(alone.tokens) - alone.tokens
    lengths = [_filled(len(caption)) for caption in captions]
    valid = None
    if len(set(lengths)) > 1:
        valid = torch.tensor([fill + n for n in lengths], device=images[0].device)
    joint: TokenLayout | str = TokenLayout(alone.grid, 0, fill + max(lengths), valid)
    # the same layers, first over the image and its fill, then over all
    refining = getattr(model, "add_control_noise_refiner", None) == "control_layers"
    if refining and valid is not None:
        joint = "captions of different lengths in one batch, and layers that see the image alone as well"
    image = TokenLayout(alone.grid, 0, fill)
    return Reading({"image": image, "joint": joint}, mask_reason="", trimmed=refining)


FAMILY = Family(
    "z_image",
    ("ZImageTransformer2DModel", "ZImageControlNetModel"),
    "image",
    _layers,
    _read,
    native_of(64, 64),  # 1024 px
    timestep="t",
    timestep_scale=-1000.0,  # 1 - t / 1000
    timestep_offset=1000.0,
    guidance=CONDITIONAL_FIRST,
)
