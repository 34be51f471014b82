"""Norms that fade from layer norm to a batch norm that can be folded (SLAB, Guo et al., arXiv 2405.11582)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RepBN(nn.Module):
    """batch_norm(x) + alpha x over the channels of (B, *grid, C); alpha is one number and starts at 1.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, -2)).view_as(x) + self.alpha * x

    def affine(self) -> tuple[Tensor, Tensor]:
        """(factor, offset) per channel that this is in evaluation mode."""
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert variance is not None
        factor = self.bn.weight * (variance + self.bn.eps).rsqrt()
        return factor + self.alpha, self.bn.bias - factor * mean


class ProgressiveNorm(nn.Module):
    """l norm1(x) + (1 - l) norm2(x) while training, where l falls from 1 to 0 by calls; norm2(x) otherwise.

    Args:
        norm1: the norm at the beginning, a layer norm.
        norm2: the norm at the end, a :class:`RepBN`.
        total_steps: calls until l is 0.
        warmup: calls before it begins to fall, with norm1 alone.

    Raises:
        ValueError: steps below 1 or a negative warmup.
    """

    def __init__(self, norm1: nn.Module, norm2: nn.Module, total_steps: int, warmup: int = 0) -> None:
        super().__init__()
        if total_steps < 1 or warmup < 0:
            raise ValueError(f"total_steps={total_steps}, warmup={warmup}: at least 1 and 0")
        self.norm1, self.norm2 = norm1, norm2
        self.has_warmup = warmup > 0
        self.register_buffer("warm", torch.tensor(warmup))
        self.register_buffer("iter", torch.tensor(total_steps))
        self.register_buffer("total_step", torch.tensor(total_steps))
        self.warm: Tensor
        self.iter: Tensor
        self.total_step: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm2(x)
        # only models with a warmup look at the counter's value, which ends a compiled graph
        if self.has_warmup and int(self.warm) > 0:
            self.warm -= 1
            return self.norm1(x)
        share = (self.iter / self.total_step).to(x.dtype)
        self.iter.sub_(1).clamp_(min=0)
        return share * self.norm1(x) + (1 - share) * self.norm2(x)


def progressive(total_steps: int, eps: float = 1e-6) -> Callable[[int], nn.Module]:
    """A maker of the authors' norm: from layer norm to RepBN."""
    return lambda dim: ProgressiveNorm(nn.LayerNorm(dim, eps=eps), RepBN(dim), total_steps)


def fold_norms(model: nn.Module) -> int:
    """Fold progressive norms into the linear layers beside them, for evaluation.

    Modules say which: ``folds`` has (norm, readers), where the linear layers ``readers`` alone read the
    norm's output, and ``folds_back`` has (layer, norm), where the norm alone reads the layer's. The model is
    changed in place; afterwards it works in evaluation mode only.

    Args:
        model: any model.

    Returns:
        How many norms are gone.
    """
    count = 0
    for module in list(model.modules()):
        for norm, readers in getattr(module, "folds", ()):
            if (last := _foldable(module, norm)) is not None:
                for reader in readers:
                    _fold_into_reader(last, module.get_submodule(reader))
                setattr(module, norm, nn.Identity())
                count += 1
        for layer, norm in getattr(module, "folds_back", ()):
            if (last := _foldable(module, norm)) is not None:
                _fold_into_writer(module.get_submodule(layer), last)
                setattr(module, norm, nn.Identity())
                count += 1
    return count


def _foldable(owner: nn.Module, name: str) -> RepBN | None:
    norm = getattr(owner, name, None)
    last = norm.norm2 if isinstance(norm, ProgressiveNorm) else norm
    return last if isinstance(last, RepBN) else None


@torch.no_grad()
def _fold_into_reader(norm: RepBN, linear: Any) -> None:
    factor, offset = norm.affine()
    bias = F.linear(offset, linear.weight, linear.bias)
    linear.weight.copy_(linear.weight * factor)
    linear.bias = nn.Parameter(bias)


@torch.no_grad()
def _fold_into_writer(layer: Any, norm: RepBN) -> None:
    factor, offset = norm.affine()
    layer.weight.copy_(layer.weight * factor.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_(layer.bias * factor + offset)
