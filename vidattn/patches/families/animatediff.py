"""AnimateDiff and SparseCtrl: the UNet's ``attn1`` within each frame, with one group per level.

Every frame is a picture of a batch of B * T, as in the image UNets. The motion modules attend along time at
each place of the picture, and stay dense.
"""

from __future__ import annotations

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, Reading
from vidattn.patches.families._video import latent
from vidattn.patches.families.unet import FAMILY as UNET
from vidattn.patches.families.unet import _halvings, _size


def read_levels(model: nn.Module, arguments: Arguments) -> Reading:
    """The grid of a frame at every level of a video UNet."""
    height, width = latent(arguments, "sample").shape[-2:]
    levels = range(_halvings(model)[-1] + 1)
    return Reading({level: TokenLayout((1, *_size(height, width, level))) for level in levels})


# "image": presets for videos have nothing to do within a frame
FAMILY = Family(
    "animatediff",
    ("UNetMotionModel", "SparseControlNetModel"),
    "image",
    UNET.layers,
    read_levels,
    UNET.native,
    guidance=UNCONDITIONAL_FIRST,
)
