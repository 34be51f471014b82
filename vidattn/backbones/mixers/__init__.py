"""Mixers: modules through which the tokens of a map (B, *grid, C) see each other, one file each."""

from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.neighborhood import NeighborhoodAttention

__all__ = ["Mixer", "NeighborhoodAttention"]
