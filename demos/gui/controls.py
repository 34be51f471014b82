"""Sliders, ticks and choices for the parameters of each pattern, from its dataclass's fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidattn.layout import Grid
from vidattn.patches.presets import PRESETS, preset_rule
from vidattn.patterns import PATTERNS, Pattern
from vidattn.patterns.topk import SCORES

Value = float | int | bool | str

TITLES = {
    "full": "everything",
    "neighborhood": "window",
    "sliding": "training-size window",
    "disc": "disc",
    "groups": "groups",
    "radial": "narrowing band",
    "sta": "window of tiles",
    "spatial": "near frames",
    "temporal": "same places",
    "topk": "best tiles",
    "hierarchical": "parts",
    "svg": "frames or places",
}
"""What each token sees, in plain words; others go by their name."""
_VIDEO_ONLY = frozenset({"radial", "sta", "spatial", "temporal", "svg"})
_CHOICES = {
    "region": ("blocks", "cross"),
    "cross": ("planes", "lines"),
    "variant": ("paper", "release"),
    "score": SCORES,
    "branches": ("close", "remote", "close+remote"),
}
# field: (lowest, highest, step) of its slider, in tokens unless it is a share
_RANGES: dict[str, tuple[float, float, float]] = {
    "window": (1, 65, 2),
    "base": (2, 64, 1),
    "size": (2, 32, 1),
    "tile": (2, 16, 1),
    "stride": (1, 16, 1),
    "dilation": (1, 8, 1),
    "radius": (1, 48, 0.5),
    "reach": (0, 4, 1),
    "decay": (0.05, 1, 0.05),
    "block": (16, 256, 16),
    "width": (0.25, 8, 0.25),
    "keep": (0.05, 1, 0.05),
    "mass": (0.5, 1, 0.01),
    "pooled": (0, 8, 2),
    "rows": (16, 256, 16),
    "parts": (1, 8, 1),
}
_STARTS: dict[tuple[str, str], Any] = {
    ("neighborhood", "window"): 17,
    ("sliding", "base"): 16,
    ("disc", "radius"): 8,
    ("groups", "size"): (4, 8, 8),
    ("sta", "window"): (3, 3, 3),
}
_RARE = frozenset("stride dilation causal cross block sink variant pooled mass rows".split())
"""Fields that stand under "more"."""
_AXES = ("frames", "height", "width")


@dataclasses.dataclass(frozen=True)
class Control:
    """One slider, tick or choice.

    Args:
        pattern: name of the pattern.
        field: of the pattern's dataclass.
        axis: which entry of a (t, h, w) size it sets, or None for a field that is one value.
        kind: "slider", "tick" or "choice".
        start: value at first.
        bounds: lowest, highest and step of a slider.
        choices: of a choice.
    """

    pattern: str
    field: str
    axis: int | None
    kind: str
    start: Value
    bounds: tuple[float, float, float] = (0, 1, 1)
    choices: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What stands beside it."""
        name = self.field.capitalize()
        return name if self.axis is None else f"{name}, {_AXES[self.axis]}"

    @property
    def rare(self) -> bool:
        """Whether it stands under "more"."""
        return self.field in _RARE


def pattern_names(moving: bool) -> list[str]:
    """Patterns that can be set by controls, those for stills or for clips."""
    names = [name for name in PATTERNS if moving or name not in _VIDEO_ONLY]
    return [name for name in names if _settable(name)]


def preset_names(moving: bool) -> list[str]:
    """Presets for stills or for clips that are patterns with controls, but for dense ones."""
    kind, known = "video" if moving else "image", set(pattern_names(moving)) - {"full"}
    return [name for name, preset in PRESETS.items() if kind in preset.kinds and preset.cls.name in known]


def controls_of(name: str, moving: bool) -> list[Control]:
    """The controls of a pattern, in the order of its fields."""
    made: list[Control] = []
    for field in dataclasses.fields(PATTERNS[name]):
        made += _controls(name, field, moving)
    return made


def pattern_of(name: str, moving: bool, values: Mapping[tuple[str, int | None], Value]) -> Pattern:
    """The pattern that the controls stand at.

    Args:
        name: of the pattern.
        moving: clips, whose sizes have three axes.
        values: by (field, axis); controls without one stand at their start.

    Raises:
        ValueError: an unknown name, or values that do not go together.
    """
    if name not in pattern_names(moving):
        raise ValueError(f"unknown pattern {name!r}: choose one of {', '.join(pattern_names(moving))}")
    made: dict[str, Any] = {}
    for control in controls_of(name, moving):
        value = values.get((control.field, control.axis), control.start)
        if control.kind == "slider" and float(value) == int(float(value)):
            value = int(float(value))
        if control.axis is None:
            made[control.field] = value
        else:
            made.setdefault(control.field, []).append(value)
    fields = {key: _size(key, value) if isinstance(value, list) else value for key, value in made.items()}
    return PATTERNS[name](**fields)


def values_of(pattern: Pattern, moving: bool, grid: Grid) -> dict[tuple[str, int | None], Value]:
    """Where the controls stand for a pattern on a grid: the way back from ``pattern_of``."""
    values: dict[tuple[str, int | None], Value] = {}
    for control in controls_of(pattern.name, moving):
        value = getattr(pattern, control.field)
        if control.axis is not None:
            value = _entry(value, control.axis)
        if value is None:  # the whole of time: the slider's next stop
            value = grid[0] | 1
        low, high, _ = control.bounds
        values[control.field, control.axis] = (
            min(max(value, low), high) if control.kind == "slider" else value
        )
    return values


def preset_pattern(name: str, moving: bool, grid: Grid, native: tuple[int, int]) -> Pattern:
    """The pattern of a preset on a grid; ``native`` is the (height, width) that the model was trained at.

    Raises:
        ValueError: no preset of that name.
    """
    if name not in preset_names(moving):
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(preset_names(moving))}")
    return preset_rule(name, {}, "video" if moving else "image", native).resolve(grid)


# ------------------------------------------------------------------ from fields
def _settable(name: str) -> bool:
    known = ("Size", "float", "int", "bool", "str")
    return all(
        field.default is None  # optional, and left at what the pattern makes of it
        or (str(field.type).split(" | ")[0] in known and (field.type != "str" or field.name in _CHOICES))
        for field in dataclasses.fields(PATTERNS[name])
    )


def _controls(name: str, field: dataclasses.Field[Any], moving: bool) -> list[Control]:
    kind = str(field.type).split(" | ")[0]
    start = _STARTS.get((name, field.name), field.default)
    if start is None:
        return []
    if kind == "bool":
        return [Control(name, field.name, None, "tick", bool(start))]
    if kind == "str":
        return [Control(name, field.name, None, "choice", str(start), choices=_CHOICES[field.name])]
    bounds = _RANGES.get(field.name) or _guessed(start)
    if isinstance(start, (int, float)) and not bounds[0] <= start <= bounds[1]:
        bounds = _guessed(start)  # another pattern's field of that name
    if kind != "Size" or (isinstance(start, int) and field.name in _RARE):
        return [Control(name, field.name, None, "slider", start, bounds)]
    if name == "sta" and field.name == "window":
        bounds = (1, 9, 2)  # counted in tiles
    return [
        Control(name, field.name, axis, "slider", _start(name, field.name, start, axis, moving), bounds)
        for axis in ((0, 1, 2) if moving and field.name != "base" else (1, 2))
    ]


def _start(name: str, field: str, start: Any, axis: int, moving: bool) -> Value:
    if (name, field) == ("groups", "size") and not moving:
        return 16
    if axis == 0 and isinstance(start, int) and field == "window":
        return 5  # an int means all frames, which a slider has no place for
    return _entry(start, axis) or 1


def _entry(size: Any, axis: int) -> Any:
    """One of (t, h, w): a single number counts for h and w, two are h and w."""
    if not isinstance(size, tuple):
        return size
    return size[axis - 3] if axis - 3 >= -len(size) else None


def _size(field: str, values: list[Value]) -> tuple[Value, ...]:
    if field == "base" or len(values) == 3:
        return tuple(values)
    return (1, *values) if field in ("size", "tile") else tuple(values)


def _guessed(start: Any) -> tuple[float, float, float]:
    """Bounds for a number that is not in the table."""
    highest = max(8.0, 4.0 * float(start if isinstance(start, (int, float)) else 2))
    return (0 if isinstance(start, float) else 1, highest, 0.05 if isinstance(start, float) else 1)
