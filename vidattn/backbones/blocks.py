"""The residual block that all models share: a list of branches, each with its own names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidattn.backbones.layers.drop import DropPath
from vidattn.backbones.mixers.base import Mixer


@dataclass(frozen=True)
class Branch:
    """x + drop(scale * module(norm(x))).

    Args:
        name: attribute name of the module in the block, and so in the state dict.
        module: a mixer, or any module on channels-last maps.
        norm: (name, module) of the norm in front.
        scale: (name, first value, shape) of a learned factor per channel.
        drop: stochastic depth applies.
    """

    name: str
    module: nn.Module
    norm: tuple[str, nn.Module] | None = None
    scale: tuple[str, float, tuple[int, ...]] | None = None
    drop: bool = True


class Block(nn.Module):
    """Residual branches one after the other on a map (B, *grid, C), with prefix tokens (B, P, C) or without.

    Args:
        branches: see :class:`Branch`.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, branches: Sequence[Branch], drop_path: float = 0.0) -> None:
        super().__init__()
        self.route: list[tuple[str, str, str, bool]] = []
        for branch in branches:
            norm = scale = ""
            if branch.norm is not None:
                norm = branch.norm[0]
                self.add_module(norm, branch.norm[1])
            self.add_module(branch.name, branch.module)
            if branch.scale is not None:
                scale, value, shape = branch.scale
                self.register_parameter(scale, nn.Parameter(torch.full(shape, value)))
            self.route.append((branch.name, norm, scale, branch.drop))
        self.drop_path = DropPath(drop_path)

    @property
    def folds(self) -> list[tuple[str, list[str]]]:
        """Norms, and the linear layers that alone read them: those that a module names in ``reads``."""
        modules = ((norm, name, getattr(self, name)) for name, norm, _, _ in self.route if norm)
        return [
            (norm, [f"{name}.{reader}" for reader in module.reads])
            for norm, name, module in modules
            if hasattr(module, "reads")
        ]

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One map and its prefix tokens in, the same out."""
        for name, norm, scale, drop in self.route:
            module = getattr(self, name)
            parts: list[Tensor] = [x] if prefix is None else [x, prefix]
            if norm:
                parts = [getattr(self, norm)(part) for part in parts]
            if prefix is not None and isinstance(module, Mixer):
                parts = list(module(*parts))
            else:
                parts = [module(part) for part in parts]
            if scale:
                parts = [part * getattr(self, scale).flatten() for part in parts]
            if drop:
                parts = self._drop(parts)
            x = x + parts[0]
            prefix = None if prefix is None else prefix + parts[1]
        return x, prefix

    def _drop(self, parts: list[Tensor]) -> list[Tensor]:
        """A sample's map and prefix tokens are left out together."""
        if self.drop_path.rate == 0 or not self.training:
            return parts
        factor = self.drop_path(parts[0].new_ones(parts[0].shape[0]))
        return [part * factor.view(-1, *[1] * (part.ndim - 1)) for part in parts]
