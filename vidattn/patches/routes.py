"""Where a patched layer's attention turns off: the two names through which diffusers computes attention.

While at least one model is patched, ``dispatch_attention_fn`` and ``F`` are rebound in the modules that
define attention processors (torch itself is untouched), and processor classes get a thin ``__call__`` that
says which attention module is running. Both do nothing for modules without a
:class:`~vidattn.patches.slots.Slot`. State never sits on processors: loading an IP-Adapter, fusing and
``set_attn_processor`` swap them, and some models share one.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vidattn.attention import attention
from vidattn.layout import TokenLayout
from vidattn.patches.slots import CURRENT, LAYER, SLOT, Decision, Slot

# Processors that compute attention in some other way, and so never come by here.
BYPASSING = frozenset(
    {
        "AttnProcessor",
        "AttnProcessorNPU",
        "CustomDiffusionAttnProcessor",
        "CustomDiffusionXFormersAttnProcessor",
        "IPAdapterAttnProcessor",
        "IPAdapterXFormersAttnProcessor",
        "SlicedAttnProcessor",
        "XFormersAttnProcessor",
        "XFormersJointAttnProcessor",
        "XLAFlashAttnProcessor2_0",
        "XLAFluxFlashAttnProcessor2_0",
    }
)

_DISPATCH = "dispatch_attention_fn"
_rebound: list[
    tuple[dict[str, Any], str, Any, Any]
] = []  # namespace, name, what stood there, what stands there now
_shims: dict[type, tuple[str, Callable, Callable]] = {}  # class: method name, original, shim
_covered: set[type] = set()
_original_dispatch: Callable | None = None
_lock = threading.RLock()


def _layout(decision: Decision, length: int, valid: Tensor | None) -> TokenLayout | None:
    """The decision's layout with the text padding of this forward. In graphs its sizes are taken from
    tensors: one graph serves all sizes and prompts.
    """
    layout, extent = decision.layout, decision.extent
    if layout is None or extent is None:
        return layout
    before, after = layout.text_before, layout.text_after
    if not torch.compiler.is_compiling():
        if decision.trimmed and layout.grid_tokens <= length - before < layout.tokens - before:
            return TokenLayout(layout.grid, before, length - before - layout.grid_tokens)
        return layout if valid is None else TokenLayout(layout.grid, before, after, valid)
    frames, height, width = extent.shape
    rest = length - extent.numel()
    if decision.trimmed:
        torch._check(rest >= before)  # the graph may not know how much was dropped
        return TokenLayout((frames, height, width), before, rest - before, valid)
    if decision.text == "before":
        return TokenLayout((frames, height, width), rest, 0, valid)
    if decision.text == "after":
        return TokenLayout((frames, height, width), 0, rest, valid)
    return TokenLayout((frames, height, width), rest - after if before else 0, after, valid)


def _refusal(
    decision: Decision, layout: TokenLayout | None, query: Tensor, key: Tensor, mask: Any, dropout: float
) -> str:
    """Why a call on the grid cannot be sparse, or ""."""
    if layout is None or query.shape[1] != layout.tokens:
        return "the sequence length is not that of the token grid"
    if mask is not None and decision.mask_reason:
        return decision.mask_reason
    if dropout > 0.0:
        return "attention dropout is on"
    if query.shape[2] != key.shape[2]:
        return "query and key heads differ"
    return ""


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast treats the inputs of torch's own attention."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype != torch.float64 else t for t in tensors)


def _turn(
    slot: Slot,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    dropout: float,
    scale: float | None,
    reason: str,
) -> Tensor | None:
    """The sparse result of one call, (B, S, H, D), or None when the caller shall compute it as ever."""
    decision, compiling = slot.decision, torch.compiler.is_compiling()
    # IP-Adapter's second call, and cached or foreign keys: not attention over the grid
    if query.shape[1] != key.shape[1]:
        if not compiling:
            CURRENT.missed = "its keys are not those of its queries"
        return None
    if decision is None:
        return None
    # the padding is the mask's; a call without one sees all text
    layout = _layout(decision, query.shape[1], slot.text_valid if mask is not None else None)
    if decision.pattern is not None and not reason:
        reason = _refusal(decision, layout, query, key, mask, dropout)
    if not compiling:
        CURRENT.reached = True
        if CURRENT.layer is not None:
            CURRENT.layer.called(decision, reason)
            if CURRENT.look is not None and layout is not None and query.shape[1] == layout.tokens:
                CURRENT.look(CURRENT.layer.name, query, key, layout, scale)
    if decision.pattern is None or layout is None:
        return None
    if reason:
        if slot.spec.strict:
            raise RuntimeError(f"vidattn: a layer would run dense although strict=True: {reason}")
        return None
    backend = slot.spec.backend
    query, key, value = _autocast(query, key, value)
    result = attention(query, key, value, decision.pattern, layout, scale=scale, backend=backend)
    return cast(Tensor, result)


def _dispatch_router(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    slot = CURRENT.slot
    if slot is not None:
        reason = "the call is causal" if is_causal else ""
        if parallel_config is not None:
            reason = "context parallelism splits the sequence"
        result = _turn(slot, query, key, value, attn_mask, dropout_p, scale, reason)
        if result is not None:
            return result
    return _original_dispatch(  # type: ignore[misc]
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        attention_kwargs=attention_kwargs,
        backend=backend,
        parallel_config=parallel_config,
    )


def _sdpa_router(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    slot = CURRENT.slot
    if slot is not None and query.ndim == 4:
        q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        result = _turn(slot, q, k, v, attn_mask, dropout_p, scale, "the call is causal" if is_causal else "")
        if result is not None:
            return result.transpose(1, 2)
    # looked up at call time, so that somebody else's replacement of torch's function is honoured
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def _functional_view() -> types.ModuleType:
    """torch.nn.functional as the processors see it: all of it, with one function routed."""
    view = types.ModuleType("vidattn_functional")
    view.__dict__.update({k: v for k, v in vars(functional).items() if not k.startswith("__")})
    view.scaled_dot_product_attention = _sdpa_router  # type: ignore[attr-defined]
    view.__getattr__ = functools.partial(getattr, functional)  # type: ignore[method-assign]  # what torch gets later
    return view


_VIEW = _functional_view()


def _rebind(namespace: dict[str, Any], name: str, old: Any, new: Any) -> None:
    if namespace.get(name) is old:
        namespace[name] = new
        _rebound.append((namespace, name, old, new))


def _cover_namespace(module: str) -> None:
    namespace = vars(sys.modules[module]) if module in sys.modules else {}
    if module != "diffusers.models.attention_dispatch":
        _rebind(namespace, _DISPATCH, _original_dispatch, _dispatch_router)
    _rebind(namespace, "F", functional, _VIEW)


def _shim(original: Callable) -> Callable:
    @functools.wraps(original)
    def call(self: Any, attn: Any, *args: Any, **kwargs: Any) -> Any:
        slot = getattr(attn, SLOT, None)
        if slot is None:
            return original(self, attn, *args, **kwargs)
        if not torch.compiler.is_compiling():
            return _watched(original, self, attn, slot, args, kwargs)
        outer = CURRENT.slot
        CURRENT.slot = slot
        try:
            return original(self, attn, *args, **kwargs)
        finally:
            CURRENT.slot = outer

    return call


def _watched(
    original: Callable, processor: Any, attn: Any, slot: Slot, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """The processor's call, noting for the report whether attention came by."""
    layer = attn.__dict__.get(LAYER)
    if layer is not None and layer is CURRENT.layer:  # a subclass's __call__ that calls its base's
        return original(processor, attn, *args, **kwargs)
    outer = CURRENT.slot, CURRENT.layer, CURRENT.reached, CURRENT.missed
    CURRENT.slot, CURRENT.layer, CURRENT.reached, CURRENT.missed = slot, layer, False, ""
    try:
        result = original(processor, attn, *args, **kwargs)
        if not CURRENT.reached and slot.decision is not None and layer is not None:
            layer.bypassed(slot, slot.decision, CURRENT.missed or bypass_reason(processor))
        return result
    finally:
        CURRENT.slot, CURRENT.layer, CURRENT.reached, CURRENT.missed = outer


def bypass_reason(processor: Any) -> str:
    """The reason for dense attention under a processor that calls neither of the two functions."""
    return f"{type(processor).__name__} computes attention in its own way"


def cover(processor: Any) -> None:
    """Make sure that calls of this processor are seen. Cheap when its class is known."""
    cls = type(processor)
    if cls in _covered:
        return
    with _lock:
        for owner in cls.__mro__:
            # processors that are modules may define forward instead; nn.Module's own __call__ stays as it is
            names = ("__call__", "forward") if isinstance(processor, nn.Module) else ("__call__",)
            name = next((n for n in names if n in vars(owner)), None)
            if name is None or owner is nn.Module:
                continue
            if owner not in _shims:
                original = vars(owner)[name]
                _shims[owner] = (name, original, _shim(original))
                setattr(owner, name, _shims[owner][2])
            _cover_namespace(owner.__module__)
        _covered.add(cls)


def install() -> None:
    """Rebind the names in diffusers' attention modules. Does nothing the second time."""
    global _original_dispatch
    from diffusers.models import attention_dispatch, attention_processor  # noqa: F401

    if _original_dispatch is None:
        _original_dispatch = attention_dispatch.dispatch_attention_fn


def uninstall() -> None:
    """Undo :func:`install` and :func:`cover`, except where somebody has since put something else."""
    with _lock:
        for namespace, name, old, new in _rebound:
            if namespace.get(name) is new:
                namespace[name] = old
        for owner, (name, original, shim) in _shims.items():
            if vars(owner).get(name) is shim:
                setattr(owner, name, original)
        _rebound.clear()
        _shims.clear()
        _covered.clear()
