"""patch, unpatch, patched: sparse attention in a diffusers pipeline, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from vidattn.patches.extrapolation import rope_base
from vidattn.patches.loading import is_controlnet, load, without_controlnets
from vidattn.patches.model_patch import ModelPatch, patch_of, share_slots
from vidattn.patches.reporting import Report, report
from vidattn.patches.rules import plan_rules
from vidattn.patches.settings import Settings, with_recipe
from vidattn.patches.slots import SlotSpec
from vidattn.patches.steps import StepClock
from vidattn.patches.targets import Target, is_pipeline, modules_of, targets_of


class Handle:
    """What ``patch`` returns: the patched models, their report, and the way back."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.models = models

    def report(self) -> Report:
        """As ``vidattn.report``, for these models."""
        return Report.of([p for model in self.models if (p := patch_of(model)) is not None])

    def unpatch(self) -> None:
        """As ``vidattn.unpatch``, for these models, wherever they are by now."""
        for model in self.models:
            _detach(model)

    def __repr__(self) -> str:
        patches = [p for model in self.models if (p := patch_of(model)) is not None]
        layers = sum(len(p.planned) for p in patches)
        return f"<vidattn patch: {len(patches)} model(s), {layers} self-attention layers>"


def patch(
    pipe_or_model: Any,
    pattern: Any,
    *,
    weights: Any = None,
    dense_steps: int = 0,
    dense_last_steps: int = 0,
    dense_layers: Any = (),
    min_tokens: int | str = "auto",
    backend: str = "auto",
    strict: bool = False,
    **preset_options: Any,
) -> Handle:
    """Let the self-attention of a diffusers pipeline or model follow a pattern.

    It then works at any size, chosen per call, without patching again. Cross-attention is never touched, nor
    are weights (but for ``weights``), state dicts or configs. Patching again replaces the patch before. When
    anything is wrong with the arguments, nothing is changed.

    Args:
        pipe_or_model: a diffusers pipeline (all its supported models are patched) or a model; see
            ``supported()``.
        pattern: a ``vidattn.patterns.Pattern``; its text form (``"neighborhood:window=17x17"``); a preset's
            name (``"neighborhood"``, ``"sliding"``, ``"clear"``, ``"grat-b"``, ``"grat-x"``, ``"radial"``,
            ``"linfusion"``, ``"linear"``, ``"lolcats"``, ``"sla"``, ``"gated"``, ``"full"``), with defaults
            chosen for the model and the grid; a stage ``{"pattern": ..., "steps": (start, end), "branch":
            "conditional" or "unconditional"}``, which counts in that part of the run's steps (shares from 0
            to 1) and in that branch of guidance, or a list of stages, of which the first that holds counts,
            and none means dense; a dictionary ``{layer name glob: any of these or None}``, where the first
            match counts and layers without one stay dense; or the path of a JSON recipe with arguments of
            this function. Stages need a pipeline.
        weights: a .safetensors file that was trained for the pattern: the authors' for "clear" and
            "linfusion", or one of ``vidattn distill``. It is taken out by ``unpatch``, and layers that run
            dense run on the model's own.
        dense_steps: how many steps at the beginning of each run stay dense. A pipeline's scheduler tells the
            position; on a model of its own a step is a change of the timestep's value, and a run begins where
            it goes up.
        dense_last_steps: how many steps at the end; needs a pipeline.
        dense_layers: numbers (among the self-attention layers, in the order they run; -1 is the last) or name
            globs.
        min_tokens: least grid tokens for sparse attention. "auto": dense where the cost model predicts it to
            be as fast (``vidattn.backends.pays``); the report then names both times. A number is the only
            rule.
        backend: who computes: "auto", or a name that ``vidattn.attention`` takes.
        strict: raise where a layer would fall back to dense attention, instead of noting the reason in the
            report.
        **preset_options: the preset's parameters, such as ``radius=16``.

    Returns:
        A handle with ``report()`` and ``unpatch()``.

    Raises:
        TypeError: an object that cannot be patched (lists what can), or arguments of a wrong kind.
        ValueError: unknown names, parameters or options, values out of range, unreadable weights or recipes.
        FileNotFoundError: no such weights or recipe.

    Example:
        >>> handle = patch(pipe, "neighborhood", dense_steps=2)
        >>> image = pipe("a red fox", height=2048, width=2048).images[0]
        >>> print(handle.report())
        >>> handle.unpatch()
    """
    settings = Settings(
        pattern,
        weights=weights,
        dense_steps=dense_steps,
        dense_last_steps=dense_last_steps,
        dense_layers=dense_layers,
        min_tokens=min_tokens,
        backend=backend,
        strict=strict,
        options=preset_options,
    )
    targets = targets_of(pipe_or_model)
    settings = with_recipe(settings).checked()
    pipe = pipe_or_model if is_pipeline(pipe_or_model) else None
    prepared = _prepare(targets, settings, pipe)
    for target, new in zip(targets, prepared, strict=True):
        _detach(target.model)
        new.attach(target.model)
    return Handle([t.model for t in targets])


def _prepare(targets: list[Target], settings: Settings, pipe: Any) -> list[ModelPatch]:
    """The patches of all models, complete but not attached."""
    _check_schedule(pipe, "dense_last_steps", settings.dense_last_steps)
    planned = plan_rules(targets, settings.pattern, settings.dense_layers, settings.options)
    planned = without_controlnets(targets, planned)
    stages = {stage for layers in planned for _, found in layers for stage in found}
    _check_schedule(pipe, "steps", next((s.steps for s in stages if s.by_steps), None))
    _check_schedule(pipe, "branch", next((s.branch for s in stages if s.branch), None))
    # the weights are the model's, not those of a ControlNet beside it
    owner = next((t for t in targets if not is_controlnet(t.model)), targets[0])
    positions = any(stage.when for stage in stages)
    clock = StepClock(pipe, settings.dense_steps, settings.dense_last_steps, positions)
    made = []
    for target, found in zip(targets, planned, strict=True):
        loaded = load(target, found, settings.weights if target is owner else None)
        spec = partial(SlotSpec, backend=settings.backend, strict=settings.strict, trained=loaded.trained)
        specs = [spec(each, layer.group) for layer, each in found]
        layers, slots = share_slots([layer for layer, _ in found], specs)
        own_clock = clock if pipe is not None else StepClock(None, settings.dense_steps, 0)
        patch = ModelPatch(target.component, target.family, layers, slots, own_clock, settings)
        patch.weights, patch.mixers, patch.note = loaded.weights, loaded.mixers, loaded.note
        patch.rope = rope_base(target.model, [stage for _, each in found for stage in each])
        made.append(patch)
    return made


def _check_schedule(pipe: Any, argument: str, value: Any) -> None:
    if value and getattr(getattr(pipe, "scheduler", None), "timesteps", None) is None:
        raise ValueError(
            f"{argument}={value!r}: a model on its own does not know how many steps a run has;"
            " patch the pipeline"
        )


def unpatch(pipe_or_model: Any) -> None:
    """Undo ``patch``: outputs, attributes and weights are what they were. Without a patch nothing happens.

    Raises:
        TypeError: neither a pipeline nor a model.

    Example:
        >>> unpatch(pipe)
    """
    for model in modules_of(pipe_or_model).values():
        _detach(model)


def _detach(model: nn.Module) -> None:
    patch = patch_of(model)
    if patch is not None:
        patch.detach(model)


@contextmanager
def patched(pipe_or_model: Any, pattern: Any, **options: Any) -> Iterator[Handle]:
    """``patch`` for the length of a ``with`` block; then the models are as before it, patched or not.

    Args:
        pipe_or_model: as for ``patch``.
        pattern: as for ``patch``.
        **options: the other arguments of ``patch``.

    Raises:
        TypeError, ValueError, FileNotFoundError: as ``patch``.

    Example:
        >>> with patched(pipe, "clear", radius=8):
        ...     image = pipe("a red fox").images[0]
    """
    before = [(t.model, patch_of(t.model)) for t in targets_of(pipe_or_model)]
    handle = patch(pipe_or_model, pattern, **options)
    try:
        yield handle
    finally:
        handle.unpatch()
        for model, old in before:
            if old is not None:
                old.attach(model)


__all__ = ["Handle", "patch", "patched", "report", "unpatch"]
