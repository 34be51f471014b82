"""The isotropic model: patches, blocks of one width on one grid, with or without a class token."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.blocks import Block
from vidattn.backbones.layers.positions import resize_positions
from vidattn.backbones.options import Names, Options, truncated_normal


@dataclass(frozen=True)
class IsotropicParts:
    """What a family says about its isotropic models.

    Args:
        width: channels.
        depth: blocks.
        stem: makes the part that turns an image, channels-last, into the grid.
        stride: pixels per token.
        block: makes a block from its number.
        neck: (address, module) pairs that run after the last block on all tokens, in order.
        head: maker of the classifier from (width, classes).
        class_token: whether there is one; the head then reads it.
        class_from: number of the first block that sees the class token (ConViT: 10).
        positions: learned positions: "grid", "all" (the class token has one as well) or "" (none).
        stem_at: the stem's address.
        block_at: a block's address, with ``{index}``.
        head_at: the head's address.
        names: how the authors' keys differ.
        weights: gives a module its first values.
    """

    width: int
    depth: int
    stem: Callable[[], nn.Module]
    stride: int
    block: Callable[[int], Block]
    neck: Sequence[tuple[str, nn.Module]]
    head: Callable[[int, int], nn.Module] = nn.Linear
    class_token: bool = False
    class_from: int = 0
    positions: str = "grid"
    stem_at: str = "patch_embed"
    block_at: str = "blocks.{index}"
    head_at: str = "head"
    names: Names = field(default_factory=Names)
    weights: Callable[[nn.Module], None] = field(default_factory=truncated_normal)


class Isotropic(Backbone):
    """A ViT-style model. The grid is (B, H, W, C) inside, the class token (B, 1, C).

    Args:
        parts: see :class:`IsotropicParts`.
        options: see :class:`vidattn.backbones.options.Options`.
    """

    def __init__(self, parts: IsotropicParts, options: Options) -> None:
        pool = "token" if parts.class_token else "avg"
        super().__init__(options, parts.width, (parts.head_at, parts.head), parts.names, pool)
        if self.global_pool == "token" and not parts.class_token:
            raise ValueError("global_pool='token': this model has no class token")
        self.depth, self.class_from, self.positions = parts.depth, parts.class_from, parts.positions
        self.stem_at, self.block_at = parts.stem_at, parts.block_at
        self.grid = (options.image[0] // parts.stride, options.image[1] // parts.stride)
        self.num_prefix_tokens = int(parts.class_token)
        self.no_decay = ("pos_embed", "cls_token")
        if parts.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, parts.width))
        if parts.positions:
            tokens = self.grid[0] * self.grid[1] + (parts.positions == "all")
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, parts.width))
        self.place(parts.stem_at, parts.stem())
        for index in range(parts.depth):
            self.place(parts.block_at.format(index=index), parts.block(index))
            self.feature_info.append(
                {
                    "num_chs": parts.width,
                    "reduction": parts.stride,
                    "module": parts.block_at.format(index=index),
                }
            )
        self.neck_at = [address for address, _ in parts.neck]
        for address, module in parts.neck:
            self.place(address, module)
        self.finish(parts.weights)
        for name in {"pos_embed", "cls_token"} & set(self._parameters):
            nn.init.trunc_normal_(self._parameters[name], std=0.02)  # type: ignore[arg-type]

    def _start(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.part(self.stem_at)(x.permute(0, 2, 3, 1))
        prefix = self.cls_token.expand(x.shape[0], -1, -1) if self.num_prefix_tokens else None
        if self.positions:
            extra = int(self.positions == "all")
            x = x + resize_positions(self.pos_embed[:, extra:], self.grid, (x.shape[1], x.shape[2]))
            if prefix is not None and extra:
                prefix = prefix + self.pos_embed[:, :extra]
        return x, prefix

    def features(self, x: Tensor, last: int | None, norm: bool) -> tuple[Any, list[Tensor]]:
        """(tokens (B, prefix + H * W, C) after the neck, or the map where there are no prefix tokens; maps of
        the blocks).
        """
        x, token = self._start(x)
        maps = []
        prefix: Tensor | None = None
        for index in range(self.depth):
            if index == self.class_from:
                prefix = token
            x, prefix = self.run(self.part(self.block_at.format(index=index)), x, prefix)
            maps.append(self.neck(x) if norm else x)
            if index == last and last + 1 < self.depth:
                return None, maps
        if prefix is None:
            return self.neck(x), maps
        return self.neck(torch.cat([prefix, x.flatten(1, 2)], 1)), maps

    def pooled(self, x: Tensor) -> Tensor:
        """Features (B, C): the class token, or over the grid only."""
        if self.global_pool == "token":
            return x[:, 0]
        return super().pooled(x[:, self.num_prefix_tokens :] if self.num_prefix_tokens else x)

    def cut(self, last: int) -> None:
        """Take out all blocks after ``last``."""
        for index in range(last + 1, self.depth):
            self.remove(self.block_at.format(index=index))
        self.depth = last + 1
        self.feature_info = self.feature_info[: last + 1]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        blocks = re.escape(self.block_at).replace(r"\{index\}", r"(\d+)")
        neck = "|".join(re.escape(address) for address in self.neck_at) or "(?!)"
        return {
            "stem": f"^(?:{re.escape(self.stem_at)}|cls_token|pos_embed)",
            "blocks": [(f"^{blocks}", None), (f"^(?:{neck})", (99999,))],
        }
