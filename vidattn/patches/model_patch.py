"""The patch of one model: its slots, and the hook that decides before each forward how every slot runs."""

from __future__ import annotations

import inspect
import threading
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidattn import backends
from vidattn.backends.pays import why_dense
from vidattn.layout import TokenLayout
from vidattn.patches import own_calls, routes
from vidattn.patches.checkpointing import keep_decisions, release_decisions
from vidattn.patches.decisions import apart, text_side, together
from vidattn.patches.extrapolation import RopeBase, scale_factor
from vidattn.patches.families import Arguments, Family, GridUnreadable, Layer, Reading
from vidattn.patches.guidance import BranchReader
from vidattn.patches.log import LayerLog, RunLog
from vidattn.patches.schedule import Case, cases_of
from vidattn.patches.settings import Settings
from vidattn.patches.sizes import shape_of
from vidattn.patches.slots import LAYER, SLOT, Decision, Slot, SlotSpec
from vidattn.patches.steps import ALL, MIDDLE, StepClock
from vidattn.patches.substitute_kinds import as_run
from vidattn.patches.substitutes import Mixers, Substitute
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
        self.mixers = Mixers({})
        self.rope = RopeBase(None, 1.0)
        self.note = ""
        self.paused = False  # forwards run as if there were no patch, and are not counted
        self._branches = BranchReader(family.guidance)
        self._by_branch = any(stage.branch for slot in slots for stage in slot.spec.stages)
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
            self._mark()
            self.mixers.attach()
            model.register_forward_pre_hook(self._hook, with_kwargs=True)
            model.__dict__[PATCH] = self

    def _mark(self) -> None:
        """Put the slots on the attention modules.

        Before each forward as well: Z-Image's ControlNet has modules of its transformer, and processors may
        have been swapped.
        """
        for planned in self.planned:
            marks, slot = planned.layer.module.__dict__, self.slots[planned.slot]
            if marks.get(SLOT) is not slot:
                # not nn.Module.__setattr__: nothing is registered, so state_dict and saving do not change
                marks[SLOT] = slot
                marks[LAYER] = LayerLog(planned.layer.name, self.log)
            own_calls.cover(planned.layer.module)

    def detach(self, model: nn.Module) -> None:
        """Take everything off again."""
        with _lock:
            for planned in self.planned:
                marks = planned.layer.module.__dict__
                if marks.get(SLOT) is self.slots[planned.slot]:
                    del marks[SLOT], marks[LAYER]
            for number, hook in list(model._forward_pre_hooks.items()):
                if hook is self._hook:
                    del model._forward_pre_hooks[number]
                    model._forward_pre_hooks_with_kwargs.pop(number, None)
            self.mixers.detach()
            self.rope.set(False)
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
        if self.paused:
            for slot in self.slots:
                slot.decision = slot.text_valid = None
            self.rope.set(False)
            return
        self._mark()
        reading, trouble = self._read(model, arguments)
        family = self.family
        timestep = arguments.get(family.timestep)
        moment = self.clock.tick(timestep, family.timestep_scale, family.timestep_offset)
        branches = self._branches.read(self.clock.pipe, moment, arguments) if self._by_branch else ("",)
        device = next((a.device for a in arguments.values() if isinstance(a, Tensor)), torch.device("cpu"))
        decisions = []
        for number, slot in enumerate(self.slots):
            found = reading.layouts.get(slot.spec.group, trouble)
            why = found if isinstance(found, str) else ""
            layout, slot.text_valid = apart(None if isinstance(found, str) else found, device)
            cases = cases_of(slot.spec.stages, moment, branches)
            key = (number, layout, cases, device, reading.note, reading.mask_reason, reading.trimmed, why)
            # one object per case: a compiled graph that has seen it is found again
            if key not in self._decisions:
                if len(self._decisions) > 1024:
                    self._decisions.clear()
                made = [self._decide(slot, layout, case, device, reading, why) for case in cases]
                self._decisions[key] = together(made)
            slot.decision = self._decisions[key]
            decisions.append(slot.decision)
        self.log.forward(self.clock.run, decisions)
        self._be_strict(decisions)
        self.mixers.place(device)
        self.rope.set(any(part.pattern is not None for d in decisions for part in d.each()))
        if self.weights is not None:
            dense = [decision.pattern is None and not decision.parts for decision in decisions]
            self.weights.show(model, frozenset(p.layer.name for p in self.planned if dense[p.slot]))
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
        case: Case,
        device: torch.device,
        reading: Reading,
        trouble: str,
    ) -> Decision:
        def dense(reason: str, fallback: bool = False) -> Decision:
            return Decision(layout, None, 1.0, case.steps, "", reason, fallback, reading.note)

        if case.trouble:
            return dense(case.trouble, fallback=True)
        rule = case.stage.rule if case.stage is not None else None
        if rule is not None and rule.dense:
            return dense(rule.dense)
        if case.kind not in (ALL, MIDDLE):
            return dense(f"{'dense_steps' if case.kind == 'first' else 'dense_last_steps'}")
        if rule is None:
            return dense("no stage for this part of the run")
        if layout is None:
            return dense(trouble or "the grid is not known", fallback=True)
        auto = self.settings.min_tokens == "auto"
        if not auto and layout.grid_tokens < int(self.settings.min_tokens):
            reason = f"{layout.grid_tokens} tokens, under min_tokens {self.settings.min_tokens}"
            return dense(reason, fallback=True)
        pattern = rule.resolve(layout.grid)
        if isinstance(pattern, Full):
            return dense("the pattern is full")
        if isinstance(pattern, Substitute):
            backend = pattern.backend
        else:
            backend, _ = backends.resolve(slot.spec.backend, pattern, layout, device)
            module = next(p.layer.module for p in self.planned if self.slots[p.slot] is slot)
            if auto and (reason := why_dense(pattern, layout, device, shape_of(module), backend)):
                return dense(reason, fallback=True)
        pattern = as_run(rule.preset, pattern)
        found = (layout, pattern, pattern.density(layout), case.steps, backend)
        return Decision(
            *found,
            note=reading.note,
            mask_reason=reading.mask_reason,
            text=text_side(layout),
            trimmed=reading.trimmed,
            own_text=reading.own_text,
            extent=torch.empty(layout.grid, dtype=torch.bool, device=device),
            factor=scale_factor(rule, layout),
        )

    def _be_strict(self, decisions: list[Decision]) -> None:
        for slot, decision in zip(self.slots, decisions, strict=True):
            for part in decision.each():
                if slot.spec.strict and part.fallback:
                    for other in self.slots:
                        other.decision = other.text_valid = None
                    raise RuntimeError(f"vidattn: layers would run dense although strict=True: {part.reason}")


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
            module, {**dict(zip(forward_parameters(cast(Any, type(module))), args, strict=False)), **kwargs}
        )


@lru_cache(maxsize=64)
def forward_parameters(cls: Any) -> tuple[str, ...]:
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
