"""The patch of one model: its slots, and the hook that decides before each forward how every slot runs."""

from __future__ import annotations

import inspect
import threading
import weakref
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidattn import backends
from vidattn.backends.pays import why_dense
from vidattn.layout import TokenLayout
from vidattn.patches import own_calls, routes
from vidattn.patches.checkpointing import keep_decisions, release_decisions
from vidattn.patches.families import Arguments, Family, GridUnreadable, Layer, Reading
from vidattn.patches.log import LayerLog, RunLog
from vidattn.patches.settings import Settings
from vidattn.patches.slots import LAYER, SLOT, Decision, Slot, SlotSpec
from vidattn.patches.steps import ALL, MIDDLE, StepClock
from vidattn.patches.weights import SwappedWeights
from vidattn.patterns import Full

PATCH = "_vidattn_patch"
"""Attribute of a patched model: its :class:`ModelPatch`."""

_lock = threading.RLock()
_live: weakref.WeakSet[ModelPatch] = weakref.WeakSet()


@dataclass(frozen=True)
class Planned:
    """A layer and the slot that it will carry."""

    layer: Layer
    slot: int


class ModelPatch:
    """All that belongs to one patched model.

    Args:
        component: the model's name in its pipeline, "" for a model on its own.
        family: facts about it.
        planned: its layers.
        slots: shared by layers that run the same way.
        clock: tells step classes.
        settings: what ``patch`` was given.
    """

    def __init__(
        self,
        component: str,
        family: Family,
        planned: list[Planned],
        slots: list[Slot],
        clock: StepClock,
        settings: Settings,
    ) -> None:
        self.component, self.family, self.planned, self.slots = component, family, planned, slots
        self.clock, self.settings = clock, settings
        self.log = RunLog()
        self.weights: SwappedWeights | None = None
        self._hook = ForwardHook(self)
        self._decisions: dict[tuple, Decision] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decisions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # copies and unpickled models are patched models: the routes must stay as long as they live
        self.__dict__.update(state)
        _register(self)

    # ------------------------------------------------------------------ on and off
    def attach(self, model: nn.Module) -> None:
        """Put the slots on the model's attention modules and the hook on the model."""
        try:
            self._attach(model)
        except BaseException:
            self.detach(model)
            raise

    def _attach(self, model: nn.Module) -> None:
        with _lock:
            _register(self)
            if self.weights is not None:
                self.weights.apply(model)
            for planned in self.planned:
                module = planned.layer.module
                # not nn.Module.__setattr__: nothing is registered, so state_dict and saving do not change
                module.__dict__[SLOT] = self.slots[planned.slot]
                module.__dict__[LAYER] = LayerLog(planned.layer.name, self.log)
                own_calls.cover(module)
            model.register_forward_pre_hook(self._hook, with_kwargs=True)
            model.__dict__[PATCH] = self

    def detach(self, model: nn.Module) -> None:
        """Take everything off again."""
        with _lock:
            for planned in self.planned:
                for name in (SLOT, LAYER):
                    planned.layer.module.__dict__.pop(name, None)
            for number, hook in list(model._forward_pre_hooks.items()):
                if hook is self._hook:
                    del model._forward_pre_hooks[number]
                    model._forward_pre_hooks_with_kwargs.pop(number, None)
            release_decisions(model)
            model.__dict__.pop(PATCH, None)
            if self.weights is not None:
                self.weights.restore(model)
            _live.discard(self)
            if not _live:
                routes.uninstall()

    # ------------------------------------------------------------------ before each forward
    def prepare(self, model: nn.Module, arguments: Arguments) -> None:
        """Read the grid and decide for every slot.

        Raises:
            RuntimeError: the patch is strict and a layer would fall back to dense attention.
        """
        for planned in self.planned:
            own_calls.cover(planned.layer.module)
        reading, trouble = self._read(model, arguments)
        family = self.family
        timestep = arguments.get(family.timestep)
        steps = self.clock.tick(timestep, family.timestep_scale, family.timestep_offset)
        device = next((a.device for a in arguments.values() if isinstance(a, Tensor)), torch.device("cpu"))
        decisions = []
        for number, slot in enumerate(self.slots):
            found = reading.layouts.get(slot.spec.group, trouble)
            why = found if isinstance(found, str) else ""
            layout, slot.text_valid = _apart(None if isinstance(found, str) else found, device)
            key = (number, layout, steps, device, reading.note, reading.mask_reason, reading.trimmed, why)
            # one object per case: a compiled graph that has seen it is found again
            if key not in self._decisions:
                if len(self._decisions) > 1024:
                    self._decisions.clear()
                self._decisions[key] = self._decide(slot, layout, steps, device, reading, why)
            slot.decision = self._decisions[key]
            decisions.append(slot.decision)
        self.log.forward(self.clock.run, decisions)
        self._be_strict(decisions)
        keep_decisions(model, self.slots)

    def _read(self, model: nn.Module, arguments: Arguments) -> tuple[Reading, str]:
        try:
            return self.family.read(model, arguments), ""
        except GridUnreadable as trouble:
            return Reading({}), str(trouble)

    def _decide(
        self,
        slot: Slot,
        layout: TokenLayout | None,
        steps: str,
        device: torch.device,
        reading: Reading,
        trouble: str,
    ) -> Decision:
        def dense(reason: str, fallback: bool = False) -> Decision:
            return Decision(layout, None, 1.0, steps, "", reason, fallback, reading.note)

        rule = slot.spec.rule
        if rule.dense:
            return dense(rule.dense)
        if steps not in (ALL, MIDDLE):
            return dense(f"{'dense_steps' if steps == 'first' else 'dense_last_steps'}")
        if layout is None:
            return dense(trouble or "the grid is not known", fallback=True)
        auto = self.settings.min_tokens == "auto"
        if not auto and layout.grid_tokens < int(self.settings.min_tokens):
            reason = f"{layout.grid_tokens} tokens, under min_tokens {self.settings.min_tokens}"
            return dense(reason, fallback=True)
        pattern = rule.resolve(layout.grid)
        if isinstance(pattern, Full):
            return dense("the pattern is full")
        if auto and (reason := why_dense(pattern, layout, device)):
            return dense(reason, fallback=True)
        density = pattern.density(layout)
        backend, _ = backends.resolve(slot.spec.backend, pattern, layout)
        return Decision(
            layout,
            pattern,
            density,
            steps,
            backend,
            note=reading.note,
            mask_reason=reading.mask_reason,
            text=_text_side(layout),
            trimmed=reading.trimmed,
            extent=torch.empty(layout.grid, dtype=torch.bool, device=device),
        )

    def _be_strict(self, decisions: list[Decision]) -> None:
        for slot, decision in zip(self.slots, decisions, strict=True):
            if slot.spec.strict and decision.fallback:
                for other in self.slots:
                    other.decision = other.text_valid = None
                raise RuntimeError(f"vidattn: layers would run dense although strict=True: {decision.reason}")


def _text_side(layout: TokenLayout) -> str:
    if layout.text_before:
        return "both" if layout.text_after else "before"
    return "after" if layout.text_after else ""


def _apart(layout: TokenLayout | None, device: torch.device) -> tuple[TokenLayout | None, Tensor | None]:
    """A layout without ``text_valid``, and that as a tensor."""
    if layout is None or layout.text_valid is None:
        return layout, None
    valid = layout.text_valid
    if not isinstance(valid, Tensor):
        valid = torch.tensor(valid, dtype=torch.int64, device=device)
    return replace(layout, text_valid=None), valid


class ForwardHook:
    """Forward pre-hook of a patched model; an object, so that copies of the model copy it with it.

    As a hook of the outermost module it runs outside the graph under ``torch.compile(model)``,
    ``model.compile()`` and ``compile_repeated_blocks()``, with fullgraph too.
    """

    def __init__(self, patch: ModelPatch) -> None:
        self.patch = patch

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.patch.prepare(
            module, {**dict(zip(_parameters(cast(Any, type(module))), args, strict=False)), **kwargs}
        )


@lru_cache(maxsize=64)
def _parameters(cls: Any) -> tuple[str, ...]:
    """Names of a model's forward parameters, self left out."""
    return tuple(inspect.signature(inspect.unwrap(cls.forward)).parameters)[1:]


def patch_of(model: nn.Module) -> ModelPatch | None:
    """The patch of a model, or None."""
    return model.__dict__.get(PATCH)


def _register(patch: ModelPatch) -> None:
    with _lock:
        routes.install()
        _live.add(patch)


def share_slots(layers: list[Layer], specs: list[SlotSpec]) -> tuple[list[Planned], list[Slot]]:
    """One slot for each different spec."""
    slots: dict[SlotSpec, int] = {}
    planned = [
        Planned(layer, slots.setdefault(spec, len(slots))) for layer, spec in zip(layers, specs, strict=True)
    ]
    return planned, [Slot(spec) for spec in slots]
