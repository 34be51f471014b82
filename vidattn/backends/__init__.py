"""Who computes a pattern: the choice of a backend, with reasons.

``torch`` runs the plan on any device; ``dense`` is PyTorch's scaled_dot_product_attention, with the n x n
mask where the pattern needs one. An explicit choice never falls back.
"""

from __future__ import annotations

import torch

from vidattn.layout import TokenLayout
from vidattn.patterns import Pattern
from vidattn.patterns.text import nearest

BACKENDS: dict[str, str] = {
    "torch": "runs the plan with tensor operations on any device; memory linear in tokens",
    "dense": "PyTorch's scaled_dot_product_attention, with the n x n mask unless every query sees all",
}


def check_backend(name: str) -> str:
    """``name``, when it is "auto" or a backend.

    Raises:
        ValueError: it is neither.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend={name!r}: {nearest(str(name), ['auto', *BACKENDS])}")
    return name


def resolve(name: str, pattern: Pattern, layout: TokenLayout) -> tuple[str, str]:
    """The backend that runs, and why.

    Args:
        name: "auto" or a backend of ``BACKENDS``.
        pattern: who sees whom.
        layout: where the tokens are.

    Raises:
        ValueError: unknown name.
    """
    if check_backend(name) != "auto":
        return name, "asked for"
    if pattern.covers(layout.grid):
        return "dense", "every query sees every key"
    return "torch", "the only backend that runs plans on this machine"


def reasons(device: torch.device | str | None = None) -> dict[str, list[str]]:
    """For each backend why it cannot run here, an empty list where it can."""
    del device  # both run everywhere that PyTorch does
    return {name: [] for name in BACKENDS}
