"""The table of presets: a name, a pattern class, and defaults chosen for the grid at hand.

A :class:`Rule` gives the pattern for a grid: a fixed one, a preset's, or none (dense). Presets are resolved
per grid at call time, so that one patch serves every size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from vidattn.layout import Grid
from vidattn.patches.substitute_kinds import (
    SLA,
    SUBSTITUTES,
    Gated,
    Linear,
    LinFusion,
    LoLCATs,
    read_value,
)
from vidattn.patches.substitutes import Substitute
from vidattn.patterns import (
    PATTERNS,
    Disc,
    Full,
    Groups,
    Neighborhood,
    Pattern,
    Radial,
    SlidingTile,
    SlidingWindow,
    SparseVideoGen,
    TopK,
    from_text,
)
from vidattn.patterns.text import nearest

Native = tuple[int, int]
"""(height, width) of the grid that the model was trained at."""


def _quarter(side: int) -> int:
    """About a quarter of a side: odd, to have a middle, and at least 17, for small grids' sake."""
    # on 32x32 tokens of emoji-flux, whose subjects are 12 to 24 tokens wide, 9 takes them apart, 17 does not
    return max(17, 2 * round((side / 4 - 1) / 2) + 1)


@dataclasses.dataclass(frozen=True)
class Preset:
    """One row of the table.

    Args:
        cls: the pattern class; its fields are the preset's options.
        defaults: (grid, native size) to the options that the class has no good constant for.
        kinds: families that it makes sense on.
        extras: further options, which are not the pattern's, with their defaults.
        fixed: fields that make the preset what it is, and are no options.
        why: where the defaults come from.
    """

    cls: type[Pattern] | type[Substitute]
    defaults: Callable[[Grid, Native], dict[str, Any]]
    why: str
    kinds: tuple[str, ...] = ("image", "video")
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The options and their constant defaults (None where the grid decides)."""
        fields = {f.name: f.default for f in dataclasses.fields(self.cls) if f.name not in self.fixed}
        return {k: None if v is dataclasses.MISSING else v for k, v in fields.items()} | dict(self.extras)

    def pattern(self, grid: Grid, native: Native, options: Mapping[str, Any]) -> Pattern | Substitute:
        """The pattern or substitute for one grid."""
        own = {k: v for k, v in options.items() if k not in self.extras}
        return self.cls(**{**self.defaults(grid, native), **own, **self.fixed})


def _window(grid: Grid, native: Native) -> dict[str, Any]:
    return {"window": (_quarter(grid[1]), _quarter(grid[2]))}


def _group(grid: Grid, native: Native) -> dict[str, Any]:
    return {"size": (1, 16, 16) if grid[0] == 1 else (4, 8, 8)}


def _band(grid: Grid, native: Native) -> dict[str, Any]:
    # half-width in frames of a band that holds a quarter of the pairs
    return {"width": grid[0] * (1 - math.sqrt(1 - 0.25))}


def _tile(grid: Grid, native: Native) -> dict[str, Any]:
    return {"tile": (1, 8, 8) if grid[0] == 1 else (4, 4, 4)}


def _nothing(grid: Grid, native: Native) -> dict[str, Any]:
    return {}


_OURS = "a quarter of each spatial side, odd, at least 17; all frames: 1/16 of the pairs of large grids"
_GRAT = "groups of 256 tokens, 16x16 or 4x8x8, as the authors' (arXiv 2505.14687)"

PRESETS: dict[str, Preset] = {
    "full": Preset(Full, _nothing, "the model's own attention"),
    "dense": Preset(Full, _nothing, "the same as full"),
    "neighborhood": Preset(Neighborhood, _window, _OURS),
    "sliding": Preset(
        SlidingWindow,
        lambda grid, native: {"base": native},
        "the window of the training size (FreeSwim, arXiv 2511.14712)",
    ),
    "clear": Preset(
        Disc,
        lambda grid, native: {"radius": 16},
        "the middle one of the released checkpoints, 8, 16 and 32 (arXiv 2412.16112)",
        kinds=("image",),
        extras={"ntk_factor": 1.0, "proportional": False},
    ),
    "linfusion": Preset(
        LinFusion,
        _nothing,
        "the published networks, as wide as the layer, a 16th of it in SDXL (arXiv 2409.02097)",
        kinds=("image",),
    ),
    "linear": Preset(Linear, _nothing, "LinFusion's feature map, elu + 1, without its networks"),
    "lolcats": Preset(
        LoLCATs, _nothing, "softmax among groups of 64 or 256 tokens and their neighbours (arXiv 2410.10254)"
    ),
    "sla": Preset(SLA, _nothing, "a fifth of the blocks, as the authors' (arXiv 2509.24006)"),
    "gated": Preset(Gated, _nothing, "one gate per head, open at first (arXiv 2505.06708)"),
    "grat-b": Preset(Groups, _group, _GRAT + "; neighbouring groups", fixed={"region": "blocks"}),
    "grat-x": Preset(
        Groups, _group, _GRAT + "; groups of the same row, column or frame", fixed={"region": "cross"}
    ),
    "radial": Preset(
        Radial,
        _nothing,
        "the paper's rule, with the sink that its figures need (arXiv 2506.19852)",
        kinds=("video",),
    ),
    "sta": Preset(
        SlidingTile,
        _nothing,
        "the authors' tile of 384 tokens and the smallest of their symmetric windows (arXiv 2502.04507)",
        kinds=("video",),
    ),
    "svg": Preset(
        SparseVideoGen,
        _band,
        "a quarter of the pairs, the authors' default (arXiv 2502.01776); for Wan they add the sink",
        kinds=("video",),
    ),
    "topk": Preset(
        TopK, _tile, "a fifth of the key tiles, of 64 tokens each, as VSA for small models (arXiv 2505.13389)"
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where a layer's pattern comes from: ``pattern``, a ``preset``, or none because of ``dense``."""

    pattern: Pattern | None = None
    preset: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    native: Native = (64, 64)
    dense: str = ""

    def resolve(self, grid: Grid) -> Pattern | Substitute:
        """The pattern or substitute for one grid. Only for rules that are not dense."""
        if self.pattern is not None:
            return self.pattern
        return PRESETS[self.preset].pattern(grid, self.native, dict(self.options))

    def __str__(self) -> str:
        if self.dense:
            return "dense"
        if self.pattern is not None:
            return self.pattern.to_text()
        return self.preset + "".join(f", {k}={v}" for k, v in self.options)


def known_names() -> list[str]:
    """Names that a pattern's text may begin with: presets and patterns."""
    return sorted(set(PRESETS) | set(PATTERNS))


def preset_rule(name: str, options: Mapping[str, Any], kind: str, native: Native) -> Rule:
    """The rule of a preset, its options tried out.

    Raises:
        ValueError: an option that the preset does not have, a value that its pattern refuses, or a family
            that it is not for.
    """
    preset = PRESETS[name]
    allowed = preset.options()
    for key in options:
        if key not in allowed:
            listed = ", ".join(allowed) or "none"
            raise ValueError(f"preset {name!r} has no option {key!r}; its options are: {listed}")
    if kind not in preset.kinds:
        others = ", ".join(sorted(n for n, p in PRESETS.items() if kind in p.kinds))
        raise ValueError(f"preset {name!r} is for {' and '.join(preset.kinds)} models; for {kind}: {others}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    preset.pattern((1, 64, 64) if kind == "image" else (16, 32, 32), native, values)
    return Rule(preset=name, options=tuple(sorted(values.items())), native=native)


def preset_text(text: str) -> tuple[str, dict[str, Any]]:
    """``clear:radius=8`` as a preset's name and options.

    Raises:
        ValueError: the options cannot be read, or the preset has no such option.
    """
    name, _, rest = text.partition(":")
    preset = PRESETS[name.strip().lower()]
    name = name.strip().lower()
    parts = {part.partition("=")[0].strip(): part for part in rest.split(",") if part.strip()}
    for key in parts:
        if key not in preset.options():
            raise ValueError(f"preset {name!r} has no option {key!r}: {nearest(key, list(preset.options()))}")
    own = parts.keys() if name in SUBSTITUTES else parts.keys() & preset.extras.keys()
    values = {key: read_value(parts[key].partition("=")[2].strip()) for key in own}
    given = [key for key in parts if key not in own]
    if given:
        # the pattern's own reader knows the forms of values; what must be given is filled in for it
        filled = {k: v for k, v in preset.defaults((1, 64, 64), (64, 64)).items() if k not in given}
        fill = [f"{k}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in filled.items()]
        pattern = from_text(f"{preset.cls.name}:{','.join([*(parts[key] for key in given), *fill])}")
        values |= {key: getattr(pattern, key) for key in given}
    return name, values
