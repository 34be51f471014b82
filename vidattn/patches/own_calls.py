"""Attention modules without a processor: the ViTs of transformers and timm attend in their own forward.

Their classes' ``forward`` gets a thin wrapper that says which module is running, and the two names through
which they compute attention are rebound in the modules that define them: ``ALL_ATTENTION_FUNCTIONS``
(transformers) and ``F`` (timm). :func:`vidattn.patches.routes.uninstall` undoes all of it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.patches import routes
from vidattn.patches.slots import CURRENT, LAYER, SLOT

_INTERFACES = "ALL_ATTENTION_FUNCTIONS"


def cover(module: nn.Module) -> None:
    """Make sure that calls of this attention module are seen, with a processor or without."""
    processor = getattr(module, "processor", None)
    if processor is not None:
        routes.cover(processor)
        return
    cls = type(module)
    if cls in routes._covered:
        return
    with routes._lock:
        for owner in cls.__mro__:
            if owner is nn.Module or "forward" not in vars(owner):
                continue
            if owner not in routes._shims:
                original = vars(owner)["forward"]
                routes._shims[owner] = ("forward", original, _shim(original))
                owner.forward = routes._shims[owner][2]  # type: ignore[attr-defined]
            _cover_namespace(owner.__module__)
        routes._covered.add(cls)


def _cover_namespace(module: str) -> None:
    routes._cover_namespace(module)
    namespace = vars(sys.modules[module]) if module in sys.modules else {}
    found = namespace.get(_INTERFACES)
    if found is not None and not isinstance(found, _Interfaces):
        routes._rebind(namespace, _INTERFACES, found, _Interfaces(found))


def _shim(original: Callable) -> Callable:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        slot = getattr(self, SLOT, None)
        if slot is None:
            return original(self, *args, **kwargs)
        if not torch.compiler.is_compiling():
            return _watched(original, self, args, kwargs)
        outer = CURRENT.slot
        CURRENT.slot = slot
        try:
            return original(self, *args, **kwargs)
        finally:
            CURRENT.slot = outer

    return call


def _watched(original: Callable, module: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The module's forward, noting for the report whether attention came by."""
    slot, layer = getattr(module, SLOT), module.__dict__.get(LAYER)
    if layer is not None and layer is CURRENT.layer:  # a subclass's forward that calls its base's
        return original(module, *args, **kwargs)
    outer = CURRENT.slot, CURRENT.layer, CURRENT.reached, CURRENT.missed
    CURRENT.slot, CURRENT.layer, CURRENT.reached, CURRENT.missed = slot, layer, False, ""
    try:
        result = original(module, *args, **kwargs)
        if not CURRENT.reached and slot.decision is not None and layer is not None:
            layer.bypassed(slot, slot.decision, CURRENT.missed or routes.bypass_reason(module))
        return result
    finally:
        CURRENT.slot, CURRENT.layer, CURRENT.reached, CURRENT.missed = outer


class _Interfaces:
    """transformers' table of attention functions, with "sdpa" routed for patched modules."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def get_interface(self, name: str, default: Callable) -> Callable:
        """The function that computes attention under this name."""
        function = self.table.get_interface(name, default)
        return functools.partial(_sdpa, function) if name == "sdpa" else function

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)


def _sdpa(
    original: Callable,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if CURRENT.slot is None or kwargs.get("is_causal") or getattr(module, "is_causal", False):
        return original(module, query, key, value, attention_mask, **kwargs)
    dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
    out = routes._sdpa_router(query, key, value, attention_mask, dropout, False, scale)
    return out.transpose(1, 2).contiguous(), None
