"""From ``patch``'s ``pattern`` and ``dense_layers`` to the stages of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from vidattn.patches.families import Family, Layer
from vidattn.patches.presets import PRESETS, Rule, known_names, preset_rule, preset_text
from vidattn.patches.schedule import Stage, is_schedule, is_stage, stages_in
from vidattn.patches.targets import Target
from vidattn.patterns import PATTERNS, Pattern, from_dict, from_text
from vidattn.patterns.text import nearest

DENSE_LAYERS = "dense_layers"
NO_PATTERN = "no pattern for this layer"


def rule_for(pattern: Any, options: Mapping[str, Any], family: Family, native: tuple[int, int]) -> Rule:
    """The rule that one pattern argument stands for.

    Args:
        pattern: a Pattern, its text or dictionary form, a preset's name, or None (dense).
        options: preset options.
        family: of the model.
        native: its grid at the size it was trained at.

    Raises:
        ValueError: an unknown name, parameter or option, or a value that the pattern refuses.
        TypeError: something else.
    """
    if isinstance(pattern, str):
        name = pattern.partition(":")[0].strip().lower()
        if name in PRESETS:
            name, written = preset_text(pattern)
            twice = sorted(set(written) & set(options))
            if twice:
                raise ValueError(f"{twice[0]!r} is given twice, in {pattern!r} and as an option")
            return preset_rule(name, {**written, **options}, family.kind, native)
        if name not in PATTERNS:
            raise ValueError(f"unknown pattern or preset {name!r}: {nearest(name, known_names())}")
    if options:
        raise ValueError(
            f"options {', '.join(sorted(options))}: only a preset's name takes options, not {pattern!r}"
        )
    if pattern is None:
        return Rule(dense=NO_PATTERN)
    if isinstance(pattern, str):
        return Rule(pattern=from_text(pattern))
    if isinstance(pattern, Mapping):
        return Rule(pattern=from_dict(pattern))
    if isinstance(pattern, Pattern):
        return Rule(pattern=pattern)
    raise TypeError(
        f"pattern={pattern!r}: give a Pattern, its text form, a preset's name ({', '.join(PRESETS)}),"
        " stages ({'pattern': ..., 'steps': (0.2, 1)}), a dictionary {layer name glob: pattern}, or the path"
        " of a JSON recipe"
    )


def stages_for(
    pattern: Any, options: Mapping[str, Any], family: Family, native: tuple[int, int]
) -> tuple[Stage, ...]:
    """The stages that one pattern argument, a stage or a list of them stands for.

    Raises:
        ValueError, TypeError: as :func:`rule_for`; a stage that cannot be read; options for stages.
    """
    if not is_schedule(pattern):
        return (Stage(rule_for(pattern, options, family, native)),)
    if options:
        raise ValueError(
            f"options {', '.join(sorted(options))}: not together with stages; write 'clear:radius=8' there"
        )
    return tuple(
        Stage(rule_for(each, {}, family, native), steps, branch) for each, steps, branch in stages_in(pattern)
    )


def is_layer_map(pattern: Any) -> bool:
    """True for ``{layer name glob: pattern}``, which a stage and a pattern's own dictionary form are not."""
    return (
        isinstance(pattern, Mapping) and not is_stage(pattern) and not isinstance(pattern.get("pattern"), str)
    )


def plan_rules(
    targets: Sequence[Target], pattern: Any, dense_layers: Any, options: Mapping[str, Any]
) -> list[list[tuple[Layer, tuple[Stage, ...]]]]:
    """The stages of each layer of each target.

    Raises:
        ValueError, TypeError: as :func:`rule_for`; a glob or a number that fits no layer; a model without
            layers.
    """
    layers = [list(t.family.layers(t.model)) for t in targets]
    for target, found in zip(targets, layers, strict=True):
        if not found:
            raise ValueError(
                f"{type(target.model).__name__} has no self-attention layer that could be patched"
            )
    if is_layer_map(pattern):
        if options:
            raise ValueError(
                f"options {', '.join(sorted(options))}: not together with a pattern for each layer"
            )
        _check_globs(pattern, targets, layers)
    dense = _dense_positions(dense_layers, targets, layers)
    planned = []
    for number, (target, found) in enumerate(zip(targets, layers, strict=True)):
        schedules = []
        for position, layer in enumerate(found):
            if (number, position) in dense:
                stages: tuple[Stage, ...] = (Stage(Rule(dense=DENSE_LAYERS)),)
            else:
                native = target.family.native(target.model, layer.group)
                chosen = _first_match(pattern, target, layer) if is_layer_map(pattern) else pattern
                stages = stages_for(chosen, options, target.family, native)
            schedules.append((layer, stages))
        planned.append(schedules)
    return planned


def _names(target: Target, layer: Layer) -> tuple[str, ...]:
    """What globs are matched against: the name in the model, and with the component in front."""
    return (layer.name, f"{target.component}.{layer.name}") if target.component else (layer.name,)


def _matches(glob: str, target: Target, layer: Layer) -> bool:
    return any(fnmatchcase(name, glob) for name in _names(target, layer))


def _first_match(patterns: Mapping[str, Any], target: Target, layer: Layer) -> Any:
    return next((p for glob, p in patterns.items() if _matches(glob, target, layer)), None)


def _check_globs(globs: Iterable[Any], targets: Sequence[Target], layers: Sequence[Sequence[Layer]]) -> None:
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(f"layer name glob {glob!r}: must be a string")
        pairs = [(t, layer) for t, found in zip(targets, layers, strict=True) for layer in found]
        if not any(_matches(glob, t, layer) for t, layer in pairs):
            raise ValueError(f"{glob!r} matches no layer: {nearest(glob, _examples(pairs))}")


def _examples(pairs: Sequence[tuple[Target, Layer]]) -> list[str]:
    """A few names to show how layers are called: the first and last of each stack."""
    names = [layer.name for _, layer in pairs]
    firsts: dict[str, str] = {}
    lasts: dict[str, str] = {}
    for name in names:
        firsts.setdefault(name.partition(".")[0], name)
        lasts[name.partition(".")[0]] = name
    return list(dict.fromkeys([*firsts.values(), *lasts.values()]))


def _dense_positions(
    dense_layers: Any, targets: Sequence[Target], layers: Sequence[Sequence[Layer]]
) -> set[tuple[int, int]]:
    """(target, position) of the layers that stay dense."""
    wanted = [dense_layers] if isinstance(dense_layers, (int, str)) else dense_layers
    if not isinstance(wanted, Iterable):
        raise TypeError(f"dense_layers={dense_layers!r}: give layer numbers or layer name globs")
    positions: set[tuple[int, int]] = set()
    for item in wanted:
        if isinstance(item, str):
            _check_globs([item], targets, layers)
        elif isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(f"dense_layers: {item!r} is neither a layer number nor a layer name glob")
        elif not any(-len(found) <= item < len(found) for found in layers):
            longest = max(map(len, layers))
            raise ValueError(f"dense_layers: there is no layer {item}; numbers go from 0 to {longest - 1}")
        for number, (target, found) in enumerate(zip(targets, layers, strict=True)):
            for position, layer in enumerate(found):
                hit = (
                    _matches(item, target, layer)
                    if isinstance(item, str)
                    else item in (position, position - len(found))
                )
                if hit:
                    positions.add((number, position))
    return positions
