"""Ovis-Image: as FLUX.1."""

from __future__ import annotations

from vidattn.patches.families import Family
from vidattn.patches.families.flux import joint_layers, native, read_ids

FAMILY = Family(
    "ovis_image",
    ("OvisImageTransformer2DModel",),
    "image",
    joint_layers,
    read_ids,
    native,
    timestep_scale=1000.0,
)
