"""What can stand in a layer for softmax attention, beside patterns: linear attention with modules of its own.

A substitute is what a rule resolves to where the preset names one, as a pattern is elsewhere. Its modules are
made per layer and kept beside the attention module, not registered in it: ``state_dict`` and saving do not
change. Projections stay the model's own, so that LoRA, quantization and offloading act on them as ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Layer
from vidattn.patches.slots import CURRENT, Slot
from vidattn.patterns.base import value_text

MIXER = "_vidattn_mixer"
"""Attribute of a patched attention module: the modules of its substitute."""


@dataclasses.dataclass(frozen=True)
class Substitute:
    """One kind of attention that is no pattern; the fields are its preset's options."""

    name: ClassVar[str]
    families: ClassVar[tuple[str, ...]] = ()
    """Names of the families that it is for; () for all."""
    whole: ClassVar[bool] = False
    """It replaces a layer from its input to its output, not only what is done with q, k and v."""
    backend: ClassVar[str] = "module"
    """As the report has it."""
    needs_training: ClassVar[bool] = True
    """Without trained weights it is not what the model had."""

    def to_text(self) -> str:
        """As a pattern's text form, with the options that differ from the defaults."""
        values = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]
        given = ",".join(f"{name}={value_text(value)}" for name, value, default in values if value != default)
        return f"{self.name}:{given}" if given else self.name

    def density(self, layout: TokenLayout) -> float:
        """Share of query-key pairs that are computed: none, in linear attention."""
        return 0.0

    def make(self, layer: Layer, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        """The modules of one layer, in their untrained state.

        Args:
            layer: of the model.
            model: the model.
            shapes: of the weights that will be loaded into them, by name in the module; {} without weights.

        Raises:
            ValueError: the layer cannot carry this substitute.
        """
        raise NotImplementedError

    def layer_output(self, mixer: Any, attn: Any, hidden_states: Tensor) -> Tensor:
        """The output of a whole attention layer, for kinds that are ``whole``."""
        raise NotImplementedError

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | None,
        text: str,
        backend: str,
    ) -> Tensor:
        """What is done with q, k and v, (B, S, H, D), for kinds that are not ``whole``, by the modules of the
        layer that is running. ``text`` is the side on which text stands.
        """
        return CURRENT.mixer(query, key, value, layout, scale)


# ------------------------------------------------------------------ the modules of one model
class Mixers:
    """The modules of a model's substitutes, by layer name; they follow the model's device and dtype."""

    def __init__(self, layers: Mapping[str, tuple[nn.Module, nn.Module]]) -> None:
        self.layers = dict(layers)  # name: (attention module, mixer)
        self._dtype = self._model_dtype()
        for _, mixer in self.layers.values():
            if self._dtype is not None:
                mixer.to(self._dtype)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """``{layer}.{parameter}``, as weights files name them."""
        return {f"{n}.{k}": p for n, (_, mixer) in self.layers.items() for k, p in mixer.named_parameters()}

    def attach(self) -> None:
        """Put each module beside its attention module."""
        for attn, mixer in self.layers.values():
            attn.__dict__[MIXER] = mixer

    def detach(self) -> None:
        """Take them off."""
        for attn, _ in self.layers.values():
            attn.__dict__.pop(MIXER, None)

    def place(self, device: torch.device) -> None:
        """Follow the model: to the device that it will run on, and to its dtype when that has changed."""
        dtype = self._model_dtype()
        parameter = next((p for _, mixer in self.layers.values() for p in mixer.parameters()), None)
        if parameter is None:
            return
        if dtype is not None and dtype != self._dtype:
            self._dtype = dtype
            for _, mixer in self.layers.values():
                mixer.to(dtype)
        if parameter.device != device:
            for _, mixer in self.layers.values():
                mixer.to(device)

    def _model_dtype(self) -> torch.dtype | None:
        """That of a query projection, if it is one to compute in: quantized ones are not."""
        for attn, _ in self.layers.values():
            to_q: Any = attn.to_q
            weight: Tensor = getattr(to_q, "base_layer", to_q).weight
            if weight.is_floating_point() and weight.dtype.itemsize >= 2:
                return weight.dtype
        return None


# ------------------------------------------------------------------ at the call
# Processors that do no more than softmax attention; others have a meaning of their own (perturbed guidance).
_PLAIN = frozenset(
    {
        "AttnProcessor",
        "AttnProcessor2_0",
        "AttnProcessorNPU",
        "FusedAttnProcessor2_0",
        "SlicedAttnProcessor",
        "XFormersAttnProcessor",
        "XLAFlashAttnProcessor2_0",
    }
)


def run_layer(
    original: Callable, processor: Any, attn: Any, slot: Slot, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """The processor's call, or what replaces it, with the layer's modules and inputs at hand."""
    mixer = getattr(attn, MIXER, None)
    if mixer is None:
        return original(processor, attn, *args, **kwargs)
    whole = _whole_layer(processor, attn, slot, args, kwargs)
    if whole is not None:
        return whole
    outer = CURRENT.mixer, CURRENT.inputs
    hidden = args[0] if args else kwargs.get("hidden_states")
    CURRENT.mixer = mixer
    CURRENT.inputs = hidden, args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
    try:
        return original(processor, attn, *args, **kwargs)
    finally:
        CURRENT.mixer, CURRENT.inputs = outer


def refuse_if_trained(slot: Slot, pattern: Any, reason: str) -> None:
    """Dense attention is no fallback for a substitute's trained weights.

    Raises:
        RuntimeError: the layer has such weights.
    """
    if slot.spec.trained and isinstance(pattern, Substitute):
        raise RuntimeError(f"vidattn: {pattern.name} cannot run in a layer: {reason}")


def _whole_layer(processor: Any, attn: Any, slot: Slot, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The output of a layer whose substitute replaces all of it, or None when the processor shall run.

    Raises:
        RuntimeError: the layer cannot run linear attention, and the patch is strict or brought trained
            weights that mean nothing to softmax attention.
    """
    mixer, decision = getattr(attn, MIXER, None), slot.decision
    if mixer is None or decision is None:
        return None
    pattern = decision.pattern
    if not isinstance(pattern, Substitute) or not pattern.whole:
        return None
    hidden = args[0] if args else kwargs.get("hidden_states")
    others = [*args[1:3], kwargs.get("encoder_hidden_states"), kwargs.get("attention_mask")]
    reason = ""
    if not any(cls.__name__ in _PLAIN for cls in type(processor).__mro__):
        reason = f"{type(processor).__name__} computes attention in its own way"
    elif not isinstance(hidden, Tensor) or hidden.ndim != 3 or any(o is not None for o in others):
        reason = "the call is no plain self-attention: it has a mask or other keys"
    out = None
    if not reason and isinstance(hidden, Tensor):
        out = pattern.layer_output(mixer, attn, hidden)
    if reason and slot.spec.strict:
        raise RuntimeError(f"vidattn: {pattern.name} cannot run in a layer: {reason}")
    if reason:
        refuse_if_trained(slot, pattern, reason)
    if not torch.compiler.is_compiling() and (reason or out is not None):
        CURRENT.reached = True
        if CURRENT.layer is not None:
            CURRENT.layer.called(decision, reason)
    return out
