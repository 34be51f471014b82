"""The pyramid: a stem, stages of blocks with a downsampler between them, a neck and a head."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.options import Names, Options, truncated_normal


@dataclass(frozen=True)
class PyramidParts:
    """What a family says about its pyramids.

    Args:
        widths: channels per stage.
        depths: blocks per stage.
        stem: makes the first part, (B, C, H, W) as channels-last to the first stage's grid.
        downsample: makes the part between stage i and i + 1 from i.
        block: makes a block from its stage and its number within.
        neck: (address, module) pairs that run after the last stage, in order.
        head: maker of the classifier from (width, classes).
        strides: pixels per token, per stage.
        stem_at: the stem's address.
        block_at: a block's address; ``{stage}`` counts from 0, ``{stage1}`` from 1, and ``{index}`` from 0.
        downsample_at: address of the part between ``{stage}`` and ``{next}``.
        head_at: the head's address.
        width: channels after the neck; the last stage's when 0.
        names: how the authors' keys differ.
        weights: gives a module its first values.
    """

    widths: Sequence[int]
    depths: Sequence[int]
    stem: Callable[[], nn.Module]
    downsample: Callable[[int], nn.Module]
    block: Callable[[int, int], nn.Module]
    neck: Sequence[tuple[str, nn.Module]]
    head: Callable[[int, int], nn.Module] = nn.Linear
    strides: Sequence[int] = (4, 8, 16, 32)
    stem_at: str = "patch_embed"
    block_at: str = "layers.{stage}.blocks.{index}"
    downsample_at: str = "layers.{stage}.downsample"
    head_at: str = "head"
    width: int = 0
    names: Names = field(default_factory=Names)
    weights: Callable[[nn.Module], None] = field(default_factory=truncated_normal)


class Pyramid(Backbone):
    """A model whose grid gets coarser from stage to stage. Maps are (B, H, W, C) inside.

    Args:
        parts: see :class:`PyramidParts`.
        options: see :class:`vidattn.backbones.options.Options`.
    """

    def __init__(self, parts: PyramidParts, options: Options) -> None:
        super().__init__(options, parts.width or parts.widths[-1], (parts.head_at, parts.head), parts.names)
        self.stem_at, self.block_at, self.downsample_at = parts.stem_at, parts.block_at, parts.downsample_at
        self.depths = tuple(parts.depths)
        self.place(parts.stem_at, parts.stem())
        for stage, depth in enumerate(parts.depths):
            for index in range(depth):
                self.place(self._block(stage, index), parts.block(stage, index))
            if stage + 1 < len(parts.depths):
                self.place(self._downsample(stage), parts.downsample(stage))
            owner = self._block(stage, 0).rpartition(".")[0]
            self.feature_info.append(
                {"num_chs": parts.widths[stage], "reduction": parts.strides[stage], "module": owner}
            )
        self.neck_at = [address for address, _ in parts.neck]
        for address, module in parts.neck:
            self.place(address, module)
        self.finish(parts.weights)

    def _block(self, stage: int, index: int) -> str:
        return self.block_at.format(stage=stage, stage1=stage + 1, index=index)

    def _downsample(self, stage: int) -> str:
        return self.downsample_at.format(stage=stage, next=stage + 1, next1=stage + 2)

    def features(self, x: Tensor, last: int | None, norm: bool) -> tuple[Any, list[Tensor]]:
        """(neck's output, stage outputs before their downsampler); None instead of the neck's with ``last``
        before the end.
        """
        x = self.part(self.stem_at)(x.permute(0, 2, 3, 1))
        maps: list[Tensor] = []
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                x, _ = self.run(self.part(self._block(stage, index)), x)
            maps.append(x)
            if stage == last:
                break
            if stage + 1 < len(self.depths):
                x = self.part(self._downsample(stage))(x)
        if len(maps) < len(self.depths):
            return None, maps
        x = self.neck(x)
        if norm:
            maps[-1] = x
        return x, maps

    def cut(self, last: int) -> None:
        """Take out all stages after ``last``."""
        for stage in range(last + 1, len(self.depths)):
            self.remove(self._downsample(stage - 1))
            for index in range(self.depths[stage]):
                self.remove(self._block(stage, index))
        self.depths = self.depths[: last + 1]
        self.feature_info = self.feature_info[: last + 1]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        template = re.escape(self.block_at).replace(r"\{stage\}", r"(\d+)").replace(r"\{stage1\}", r"(\d+)")
        stage_only = template.partition(r"\.\{index\}")[0]
        down = re.escape(self.downsample_at)
        for word in ("stage", "next", "next1"):
            down = down.replace(rf"\{{{word}\}}", r"(\d+)")
        if coarse:
            return {
                "stem": f"^{re.escape(self.stem_at)}",
                "blocks": [(f"^{stage_only}", None), (f"^{down}", None)],
            }
        blocks = template.replace(r"\{index\}", r"(\d+)")
        neck = "|".join(re.escape(address) for address in self.neck_at) or "(?!)"
        return {
            "stem": f"^{re.escape(self.stem_at)}",
            "blocks": [(f"^{blocks}", None), (f"^{down}", (0,)), (f"^(?:{neck})", (99999,))],
        }
