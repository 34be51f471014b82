"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.backends.problem import Problem

Reasons = Callable[[Problem, Tensor, Tensor, Tensor], list[str]]
Forward = Callable[[Problem, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Backward = Callable[[Problem, Saved, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def nothing_missing(device: torch.device) -> list[str]:
    """For backends that run wherever PyTorch does."""
    return []


def no_reasons(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    """For backends that run every call."""
    return []


def no_doubts(query: Tensor, value: Tensor, backward: bool) -> list[str]:
    """For backends that "auto" takes wherever they can run."""
    return []


@dataclass(frozen=True)
class Backend:
    """Someone who computes attention.

    Args:
        name: as users write it.
        about: one line for ``vidattn doctor`` and the documentation.
        forward: (problem, query, key, value, return_lse) to (out (B, S, H, Dv), lse (B, S, H) or None); a lse
            that was not asked for may be left out where there is no ``backward``. Keys beyond S are extra
            ones that every query sees.
        backward: (problem, (query, key, value, out, lse), grad_out, grad_lse) to the gradients of query, key
            and value. With it, forward runs inside the custom op, without autograd. None: PyTorch (or another
            package) differentiates forward, which is called as it is.
        missing: what keeps the backend from running on a device at all.
        reasons: what keeps it from running one call, ``missing`` included.
        doubts: (query, value, backward) to why "auto" does not take it although it can run.
    """

    name: str
    about: str
    forward: Forward
    backward: Backward | None = None
    missing: Callable[[torch.device], list[str]] = nothing_missing
    reasons: Reasons = no_reasons
    doubts: Callable[[Tensor, Tensor, bool], list[str]] = no_doubts
