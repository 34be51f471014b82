"""From the rules of a model to the modules and weights that they need, checked and complete, nothing attached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vidattn.patches.families import Layer
from vidattn.patches.presets import Rule
from vidattn.patches.substitutes import SUBSTITUTES, Mixers, Substitute, check_family
from vidattn.patches.targets import Target
from vidattn.patches.weight_files import WeightsFile, fit, read_file
from vidattn.patches.weights import SwappedWeights

Rules = Sequence[tuple[Layer, Rule]]


@dataclass(frozen=True)
class Loaded:
    """What a model's patch carries beside its slots. ``note`` is for the report."""

    mixers: Mixers
    weights: SwappedWeights | None
    note: str = ""


def is_controlnet(model: nn.Module) -> bool:
    """Whether a model only steers another one, to whose layers weights and substitutes belong."""
    return "ControlNet" in type(model).__name__


def without_controlnets(
    targets: Sequence[Target], planned: Sequence[Rules]
) -> list[list[tuple[Layer, Rule]]]:
    """The rules, with ControlNets dense where a substitute would stand: no weights exist for them.

    Raises:
        ValueError: a substitute on a family that it is not for.
    """
    made = []
    for target, rules in zip(targets, planned, strict=True):
        kept = []
        for layer, rule in rules:
            if rule.preset in SUBSTITUTES and not rule.dense:
                check_family(rule.preset, target.family)
                if is_controlnet(target.model):
                    rule = Rule(dense=f"{rule.preset} is for the model, not for its ControlNet")
            kept.append((layer, rule))
        made.append(kept)
    return made


def load(target: Target, rules: Rules, weights: Any) -> Loaded:
    """Make the modules of the substitutes and read the weights.

    Args:
        target: the model; not changed.
        rules: for its layers.
        weights: path of a safetensors file, or None.

    Raises:
        ValueError, FileNotFoundError: as :mod:`vidattn.patches.weight_files` says; a layer that cannot carry
            its substitute.
    """
    file = read_file(weights, target.model) if weights is not None else None
    if file is not None:
        file = _without(file, [layer.name for layer, rule in rules if rule.dense])
    made: dict[str, tuple[nn.Module, nn.Module]] = {}
    names: dict[str, None] = {}
    for layer, rule in rules:
        substitute = None if rule.dense or rule.preset not in SUBSTITUTES else rule.resolve((1, 1, 1))
        if isinstance(substitute, Substitute):
            shapes = file.shapes_of(layer.name) if file is not None else {}
            made[layer.name] = (layer.module, substitute.make(layer, target.model, shapes))
            names[substitute.name] = None
    mixers = Mixers(made)
    if file is None:
        kinds = ", ".join(names)
        note = f"{kinds}: no weights were given; the layers start from the model's own and need distillation"
        return Loaded(mixers, None, note if names else "")
    needed = [f"{layer}.{n}" for layer in made for n in _PUBLISHED] if file.numbered else []
    return Loaded(mixers, fit(file, target.model, mixers.named_parameters(), needed))


_PUBLISHED = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")


def _without(file: WeightsFile, layers: Sequence[str]) -> WeightsFile:
    """The file without the tensors of layers that stay dense: those keep the model's own."""
    dropped = tuple(f"{layer}." for layer in layers)
    if not dropped:
        return file
    return replace(file, tensors={k: t for k, t in file.tensors.items() if not k.startswith(dropped)})
