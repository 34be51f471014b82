"""The moving average of the weights that train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average, which follows faster at the start.

    Args:
        weights: by name.
        decay: of the average; 0 keeps the latest weights.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.weights, self.decay = dict(weights), decay
        self.values = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number ``step`` (from 1)."""
        decay = min(self.decay, step / (step + 9)) if self.decay else 0.0
        for name, weight in self.weights.items():
            self.values[name].lerp_(weight, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the weights are the average."""
        with torch.no_grad():
            kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
            self._copy(self.values)
            try:
                yield
            finally:
                self._copy(kept)

    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
