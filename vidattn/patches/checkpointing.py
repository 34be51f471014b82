"""Gradient checkpointing: a recomputed block runs under the decisions of its own forward.

Recomputation happens in the backward, perhaps after forwards of other sizes and in another thread. So while
checkpointing is on, the function that a model checkpoints with is wrapped to carry the decisions along.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vidattn.patches.slots import Slot

_FUNCTION = "_gradient_checkpointing_func"  # diffusers puts it on every module that checkpoints its blocks


class _Carrying:
    """A checkpoint function that has the block run under today's decisions whenever it runs."""

    def __init__(self, original: Callable, slots: list[Slot]) -> None:
        self.original, self.slots = original, slots

    def __call__(self, block: Callable, *args: Any, **kwargs: Any) -> Any:
        if (
            torch.compiler.is_compiling()
        ):  # a compiled graph recomputes with the values that it was traced with
            return self.original(block, *args, **kwargs)
        today = _get(self.slots)

        # under the block's own name, because functions given by users may look at it
        @functools.wraps(block, updated=())
        def run(*a: Any, **k: Any) -> Any:
            before = _get(self.slots)
            _set(self.slots, today)
            try:
                return block(*a, **k)
            finally:
                _set(self.slots, before)

        return self.original(run, *args, **kwargs)


def _get(slots: list[Slot]) -> list[tuple[Any, Any]]:
    return [(slot.decision, slot.text_valid) for slot in slots]


def _set(slots: list[Slot], states: list[tuple[Any, Any]]) -> None:
    for slot, (decision, valid) in zip(slots, states, strict=True):
        slot.decision, slot.text_valid = decision, valid


def _checkpoints(model: nn.Module) -> bool:
    # transformers' name first: it warns about diffusers' one
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(type(model), name):
            return bool(getattr(model, name))
    return False


def keep_decisions(model: nn.Module, slots: list[Slot]) -> None:
    """Wrap the checkpoint functions in use, those that were set since the last forward included."""
    if not torch.is_grad_enabled() or not _checkpoints(model):
        return
    for module in model.modules():
        function = module.__dict__.get(_FUNCTION)
        if function is not None and not isinstance(function, _Carrying):
            module.__dict__[_FUNCTION] = _Carrying(function, slots)


def release_decisions(model: nn.Module) -> None:
    """Put the model's own checkpoint functions back."""
    for module in model.modules():
        function = module.__dict__.get(_FUNCTION)
        if isinstance(function, _Carrying):
            module.__dict__[_FUNCTION] = function.original
