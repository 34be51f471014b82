"""Patterns as the command line takes them: a text form, or a preset with the defaults for a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidattn.cli.arguments import BadArgument

if TYPE_CHECKING:
    from vidattn.patterns import Pattern


def read_pattern(
    text: str,
    grid: tuple[int, int, int],
    kind: str,
    native: tuple[int, int],
    argument: str = "PATTERN",
) -> Pattern:
    """A pattern from its text form, or a preset with the parameters that it takes on this grid.

    Args:
        text: what was typed.
        grid: (T, H, W) in tokens.
        kind: "image" or "video".
        native: (H, W) of the grid that the model was trained at.
        argument: what to call it in an error.

    Raises:
        BadArgument: an unknown name, or parameters that the pattern refuses.
    """
    from vidattn.patches.presets import PRESETS, preset_rule, preset_text
    from vidattn.patches.substitutes import Substitute
    from vidattn.patterns import PATTERNS, from_text
    from vidattn.patterns.text import nearest

    name = text.partition(":")[0].strip().lower()
    try:
        if name in PRESETS:
            _, options = preset_text(text)
            found = preset_rule(name, options, kind, native).resolve(grid)
            if isinstance(found, Substitute):
                raise BadArgument(argument, f"{name!r} is linear attention or a gate: it has no pattern")
            return found
        if name in PATTERNS:
            return from_text(text)
    except ValueError as error:
        raise BadArgument(argument, str(error)) from error
    raise BadArgument(argument, f"unknown pattern {name!r}: {nearest(name, PRESETS | PATTERNS)}")
