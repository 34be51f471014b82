"""Reading the sizes that users give to patterns."""

from __future__ import annotations

from collections.abc import Sequence

Size = int | tuple[int, ...]
"""An int (h = w = n, the whole of t), (h, w) (the whole of t) or (t, h, w), in tokens."""


def is_int(value: object) -> bool:
    """True for a Python integer that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def normal_size(value: Size | Sequence[int], name: str, least: int = 1) -> Size:
    """``value`` as an int or a tuple of two or three ints.

    Raises:
        ValueError: anything else, or an entry under ``least``.
    """
    if is_int(value):
        entries: tuple[int, ...] = (value,)  # type: ignore[assignment]
        result: Size = value  # type: ignore[assignment]
    elif isinstance(value, (tuple, list)) and len(value) in (2, 3) and all(is_int(v) for v in value):
        entries = result = tuple(value)
    else:
        raise ValueError(f"{name}={value!r}: give an integer, (h, w) or (t, h, w)")
    if min(entries) < least:
        raise ValueError(f"{name}={value!r}: every entry must be at least {least}")
    return result


def per_axis(value: Size, whole_t: int) -> tuple[int, int, int]:
    """``value`` as (t, h, w), with ``whole_t`` standing for the axis that was left out."""
    if isinstance(value, int):
        return whole_t, value, value
    if len(value) == 2:
        return whole_t, value[0], value[1]
    return value[0], value[1], value[2]
