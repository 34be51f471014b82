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
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vidattn.attention import attention
from vidattn.patches.calls import Call, autocast, layout_of_call, pieces, refusal, reversed_text
from vidattn.patches.slots import CURRENT, LAYER, SLOT, Decision, Slot
from vidattn.patches.substitutes import Substitute, refuse_if_trained, run_layer

_DISPATCH = "dispatch_attention_fn"
_rebound: list[
    tuple[dict[str, Any], str, Any, Any]
] = []  # namespace, name, what stood there, what stands there now
_shims: dict[type, tuple[str, Callable, Callable]] = {}  # class: method name, original, shim
_covered: set[type] = set()
_original_dispatch: Callable | None = None
_lock = threading.RLock()


def _turn(slot: Slot, call: Call, reason: str) -> Tensor | None:
    """The result of one call, (B, S, H, D), or None when the caller shall compute it as ever.

    ``reason`` says why it must be dense, "" if nothing does.
    """
    decision = slot.decision
    # IP-Adapter's second call, and cached or foreign keys: not attention over the grid
    if call.query.shape[1] != call.key.shape[1]:
        if not torch.compiler.is_compiling():
            CURRENT.missed = "its keys are not those of its queries"
        return None
    if decision is None or (isinstance(decision.pattern, Substitute) and decision.pattern.whole):
        return None
    valid = slot.text_valid if call.mask is not None else None  # the padding is the mask's
    if not decision.parts:
        return _sparse(slot, decision, valid, call, reason)
    count = len(decision.parts)
    if call.query.shape[0] % count:
        for part in decision.parts:
            _sparse(slot, part, valid, call, "items of the batch attend in calls of their own")
        return None
    results = []
    for part, piece, real in zip(
        decision.parts, call.pieces(count), pieces(valid, call.query.shape[0], count), strict=True
    ):
        result = _sparse(slot, part, real, piece, reason)
        results.append(piece.dense() if result is None else result)
    return torch.cat(results)


def _sparse(slot: Slot, decision: Decision, valid: Tensor | None, call: Call, reason: str) -> Tensor | None:
    """The result under one decision, or None when that says dense, or ``reason`` or the call do."""
    layout = layout_of_call(decision, call.query.shape[1], valid)
    if decision.pattern is not None and not reason:
        reason = refusal(decision, layout, call)
    if not torch.compiler.is_compiling():
        CURRENT.reached = True
        if CURRENT.layer is not None:
            CURRENT.layer.called(decision, reason)
            if CURRENT.look is not None and layout is not None and call.query.shape[1] == layout.tokens:
                seen = layout if valid is None else replace(layout, text_valid=valid)
                CURRENT.look(CURRENT.layer.name, call.query, call.key, seen, call.scale)
    if decision.pattern is None or layout is None:
        return None
    if reason:
        if slot.spec.strict:
            raise RuntimeError(f"vidattn: a layer would run dense although strict=True: {reason}")
        refuse_if_trained(slot, decision.pattern, reason)
        return None
    before, pattern, scale = layout.text_before, decision.pattern, call.scale
    query, key, value = autocast(call.query, call.key, call.value)
    if decision.factor != 1.0:
        scale = (query.shape[-1] ** -0.5 if scale is None else scale) * decision.factor
    if decision.own_text:  # whose padding is in front: backwards it is behind
        query, key, value = (reversed_text(t, before) for t in (query, key, value))
    if isinstance(pattern, Substitute):
        result = pattern.attend(query, key, value, layout, scale, decision.text, slot.spec.backend)
    else:
        made = attention(query, key, value, pattern, layout, scale=scale, backend=slot.spec.backend)
        result = cast(Tensor, made)
    return torch.cat([call.first_rows(before), result[:, before:]], 1) if decision.own_text else result


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
    options = {
        "dropout_p": dropout_p,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "attention_kwargs": attention_kwargs,
        "backend": backend,
        "parallel_config": parallel_config,
    }

    def own(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return cast(Tensor, _original_dispatch(q, k, v, attn_mask=mask, **options))  # type: ignore[misc]

    slot = CURRENT.slot
    if slot is not None:
        reason = "the call is causal" if is_causal else ""
        if parallel_config is not None:
            reason = "context parallelism splits the sequence"
        result = _turn(slot, Call(query, key, value, attn_mask, dropout_p, scale, own), reason)
        if result is not None:
            return result
    return own(query, key, value, attn_mask)


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
    def own(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        # looked up at call time, so that somebody else's replacement of torch's function is honoured
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )

    def own_in_dispatch_layout(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return own(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2)

    slot = CURRENT.slot
    if slot is not None and query.ndim == 4:
        q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        reason = "the call is causal" if is_causal else ""
        call = Call(q, k, v, attn_mask, dropout_p, scale, own_in_dispatch_layout)
        result = _turn(slot, call, reason)
        if result is not None:
            return result.transpose(1, 2)
    return own(query, key, value, attn_mask)


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
            return run_layer(original, self, attn, slot, args, kwargs)
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
        result = run_layer(original, processor, attn, slot, args, kwargs)
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
