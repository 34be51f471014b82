"""SkyReels V2: as Wan. Its autoregressive mode masks later blocks of frames, and then runs dense."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from vidattn.patches.families import Family
from vidattn.patches.families._video import stacks
from vidattn.patches.families.wan import FAMILY as WAN


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 34, 60  # 544 x 960


FAMILY = Family("skyreels", ("SkyReelsV2Transformer3DModel",), "video", stacks("blocks"), WAN.read, _native)
