"""The surface that all models share: timm's names and meanings, without timm.

A model is a tree of parts at *addresses* (``"levels.0.blocks.1"``), which the family's file chooses so that
parameters get the names of the authors' checkpoints; the skeletons find the parts by these addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidattn.backbones.options import Names, Options, rename, take_indices


class Backbone(nn.Module):
    """Base of the skeletons.

    Args:
        options: see :class:`Options`.
        width: channels of ``forward_features``.
        head: (address, maker): ``maker(width, num_classes)`` makes the classifier.
        names: how the authors' keys differ.
        pool: pooling where the options leave it open.
    """

    def __init__(
        self,
        options: Options,
        width: int,
        head: tuple[str, Callable[[int, int], nn.Module]],
        names: Names,
        pool: str = "avg",
    ) -> None:
        super().__init__()
        self.options = options
        self.num_classes = options.num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = width
        self.global_pool = pool if options.global_pool is None else options.global_pool
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []
        self.names = names
        self.neck_at: list[str] = []
        self.head_drop = nn.Dropout(options.drop_rate)
        self.head_at, self._make_head = head

    # -- the tree of parts

    def place(self, address: str, part: nn.Module) -> None:
        """Put a part at a dotted address; containers in between are made."""
        *path, last = address.split(".")
        owner: nn.Module = self
        for name in path:
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = getattr(owner, name)
        owner.add_module(last, part)

    def remove(self, address: str) -> None:
        """Take out the part at a dotted address."""
        owner, _, name = address.rpartition(".")
        delattr(self.part(owner) if owner else self, name)

    def neck(self, x: Tensor) -> Tensor:
        """Run the parts between the last block and the head."""
        for address in self.neck_at:
            x = self.part(address)(x)
        return x

    def part(self, address: str) -> Any:
        """The part at a dotted address."""
        return reduce(getattr, address.split("."), self)

    def finish(self, weights: Callable[[nn.Module], None]) -> None:
        """Add the head, and give all parameters their first values."""
        self.place(self.head_at, self._new_head())
        self.apply(weights)
        self.eval()

    def _new_head(self) -> nn.Module:
        return self._make_head(self.num_features, self.num_classes) if self.num_classes else nn.Identity()

    # -- forward

    def run(self, block: nn.Module, *args: Any) -> Any:
        """Call a block, saving its activations' memory where gradient checkpointing is on."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def features(self, x: Tensor, last: int | None, norm: bool) -> tuple[Any, list[Tensor]]:
        """(final features, maps (B, H, W, C) of the stages up to ``last``); a skeleton defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define features")

    def forward_features(self, x: Tensor) -> Any:
        """Normed and unpooled features of an image (B, C, H, W), channels-last."""
        return self.features(x, None, False)[0]

    def pooled(self, x: Tensor) -> Tensor:
        """Features (B, C) of what ``forward_features`` gave."""
        if self.global_pool == "":
            return x
        flat = x.flatten(1, -2)
        return flat.amax(1) if self.global_pool == "max" else flat.mean(1)

    def forward_head(self, x: Any, pre_logits: bool = False) -> Tensor:
        """Pool, and classify unless ``pre_logits``."""
        x = self.head_drop(self.pooled(x))
        return x if pre_logits else self.part(self.head_at)(x)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, num_classes) of an image (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Feature maps of stages (pyramids) or blocks (isotropic models).

        Args:
            x: image (B, C, H, W).
            indices: which, negative ones from the end; an integer n means the last n, None all.
            norm: apply the final norm to each.
            stop_early: do not run what comes after the last one that is wanted.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: leave out the final features.

        Returns:
            A list of maps, or (final features, list).

        Raises:
            ValueError: an index out of range or an unknown format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r}: must be 'NCHW' or 'NHWC'")
        wanted = take_indices(len(self.feature_info), indices)
        final, maps = self.features(x, max(wanted) if stop_early else None, norm)
        chosen = [maps[i] if output_fmt == "NHWC" else maps[i].permute(0, 3, 1, 2) for i in wanted]
        return chosen if intermediates_only else (final, chosen)

    # -- timm's handles

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.part(self.head_at)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head; 0 classes leave the pooled features.

        Args:
            num_classes: outputs.
            global_pool: as in :class:`Options`; unchanged when None.
        """
        self.options = replace(self.options, num_classes=num_classes, global_pool=global_pool)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        like = next(self.parameters())
        self.place(self.head_at, self._new_head().to(like.device, like.dtype))

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone; modules name theirs in ``no_decay``."""
        return {
            f"{path}.{name}" if path else name
            for path, module in self.named_modules()
            for name in getattr(module, "no_decay", ())
            if module._parameters.get(name) is not None
        }

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Take out what comes after the feature maps that are wanted.

        Args:
            indices: as in ``forward_intermediates``.
            prune_norm: take out the neck as well.
            prune_head: take out the head.

        Returns:
            The indices, counted from 0.

        Raises:
            ValueError: an index out of range.
        """
        wanted = take_indices(len(self.feature_info), indices)
        before_the_end = max(wanted) + 1 < len(self.feature_info)
        self.cut(max(wanted))
        if prune_norm or before_the_end:
            for address in self.neck_at:
                self.remove(address)
            self.neck_at = []
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def cut(self, last: int) -> None:
        """Take out all stages or blocks after ``last``; a skeleton defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define cut")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    @property
    def folds(self) -> list[tuple[str, list[str]]]:
        """The last norm and the head that alone reads it, through a mean."""
        single = len(self.neck_at) == 1 and self.global_pool == "avg" and self.num_classes > 0
        return [(self.neck_at[0], [self.head_at])] if single else []

    # -- loading

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors with our names, learned positions brought to this model's grid where a skeleton can."""
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        rename(state_dict, prefix, self.names)
        super()._load_from_state_dict(state_dict, prefix, *args)
