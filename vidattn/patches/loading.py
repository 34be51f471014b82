"""From the rules of a model to the modules and weights that they need: complete, and nothing attached yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vidattn.patches.families import Layer
from vidattn.patches.presets import Rule
from vidattn.patches.schedule import Stage
from vidattn.patches.substitute_kinds import as_run, check_family
from vidattn.patches.substitutes import Mixers, Substitute
from vidattn.patches.targets import Target
from vidattn.patches.weight_files import WeightsFile, fit, read_file
from vidattn.patches.weights import SwappedWeights

Found = Sequence[tuple[Layer, tuple[Stage, ...]]]
"""Layers with their stages."""

_PUBLISHED = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")


@dataclass(frozen=True)
class Loaded:
    """What a model's patch carries beside its slots. ``note`` is for the report."""

    mixers: Mixers
    weights: SwappedWeights | None
    note: str = ""

    @property
    def trained(self) -> bool:
        """Whether the weights came from a file."""
        return self.weights is not None


def is_controlnet(model: nn.Module) -> bool:
    """Whether a model only steers another one, to whose layers weights and substitutes belong."""
    return "ControlNet" in type(model).__name__


def is_dense(stages: tuple[Stage, ...]) -> bool:
    """Whether a layer stays dense throughout."""
    return all(stage.rule.dense for stage in stages)


def without_controlnets(
    targets: Sequence[Target], planned: Sequence[Found]
) -> list[list[tuple[Layer, tuple[Stage, ...]]]]:
    """The rules, with ControlNets dense where a substitute would stand: no weights exist for them.

    Raises:
        ValueError: a substitute on a family that it is not for, or in one branch of guidance.
    """
    made = []
    for target, found in zip(targets, planned, strict=True):
        controlnet = is_controlnet(target.model)
        made.append(
            [(layer, tuple(_checked(s, target, controlnet) for s in stages)) for layer, stages in found]
        )
    return made


def _checked(stage: Stage, target: Target, controlnet: bool) -> Stage:
    found = _of(stage.rule)
    if found is None:
        return stage
    name = found.name
    check_family(found, target.family)
    if stage.branch:
        raise ValueError(f"branch={stage.branch!r}: preset {name!r} runs in both branches of guidance")
    if controlnet:
        return replace(stage, rule=Rule(dense=f"{name} is for the model, not for its ControlNet"))
    return stage


def load(target: Target, found: Found, weights: Any) -> Loaded:
    """Make the modules of the substitutes and read the weights.

    Args:
        target: the model; not changed.
        found: its layers with their stages.
        weights: path of a safetensors file, or None.

    Raises:
        ValueError, FileNotFoundError: as :mod:`vidattn.patches.weight_files` says; a layer that cannot carry
            its substitute.
    """
    file = read_file(weights, target.model) if weights is not None else None
    if file is not None:
        file = _without(file, [layer.name for layer, stages in found if is_dense(stages)])
    made: dict[str, tuple[nn.Module, nn.Module]] = {}
    names: dict[str, None] = {}
    for layer, stages in found:
        substitute = _substitute(layer, stages)
        if substitute is not None:
            shapes = file.shapes_of(layer.name) if file is not None else {}
            made[layer.name] = (layer.module, substitute.make(layer, target.model, shapes))
            if substitute.needs_training:
                names[substitute.name] = None
    mixers = Mixers(made)
    if file is None:
        kinds = ", ".join(names)
        note = f"{kinds}: no weights were given; the layers start from the model's own and need distillation"
        return Loaded(mixers, None, note if names else "")
    # in the identity form there are no networks whose presence shows what the file is
    bare = "linfusion" in names and not any(".to_q_." in key for key in file.tensors)
    needed = [f"{layer}.{n}" for layer in made for n in _PUBLISHED[: None if file.numbered else -1]]
    needed = needed if file.numbered or bare else []
    return Loaded(mixers, fit(file, target.model, mixers.named_parameters(), needed))


def _substitute(layer: Layer, stages: tuple[Stage, ...]) -> Substitute | None:
    """The one substitute of a layer, or None."""
    found = {kind for stage in stages if (kind := _of(stage.rule)) is not None}
    if len(found) > 1:
        texts = sorted(kind.to_text() for kind in found)
        raise ValueError(f"{layer.name} has stages with more than one of {', '.join(texts)}")
    return next(iter(found), None)


def _of(rule: Rule) -> Substitute | None:
    """The substitute that a rule stands for, or None."""
    found = None if rule.dense else as_run(rule.preset, rule.resolve((1, 64, 64)))
    return found if isinstance(found, Substitute) else None


def _without(file: WeightsFile, layers: Sequence[str]) -> WeightsFile:
    """The file without the tensors of layers that stay dense: those keep the model's own."""
    dropped = tuple(f"{layer}." for layer in layers)
    if not dropped:
        return file
    kept = {k: t for k, t in file.tensors.items() if not k.startswith(dropped)}
    return replace(file, tensors=kept, added=file.added & kept.keys())
