"""Patterns from their text form and from dictionaries."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from vidattn.patterns.bands import Spatial, Temporal
from vidattn.patterns.base import Pattern
from vidattn.patterns.clusters import SemanticClusters
from vidattn.patterns.disc import Disc
from vidattn.patterns.full import Full
from vidattn.patterns.groups import Groups
from vidattn.patterns.hierarchical import Hierarchical
from vidattn.patterns.per_head import PerHead
from vidattn.patterns.radial import Radial
from vidattn.patterns.segments import Segments
from vidattn.patterns.sliding_tile import SlidingTile
from vidattn.patterns.svg import SparseVideoGen
from vidattn.patterns.topk import TopK
from vidattn.patterns.window import Neighborhood, SlidingWindow

PATTERNS: dict[str, type[Pattern]] = {
    c.name: c
    for c in (
        Full,
        Neighborhood,
        SlidingWindow,
        Disc,
        Groups,
        Radial,
        SlidingTile,
        Spatial,
        Temporal,
        PerHead,
        Segments,
        TopK,
        Hierarchical,
        SparseVideoGen,
        SemanticClusters,
    )
}


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """The sentence that ends an error about an unknown name: what was probably meant, and what there is."""
    match = difflib.get_close_matches(word, list(known), n=1)
    hint = f"did you mean {match[0]!r}? " if match else ""
    return f"{hint}Known: {', '.join(sorted(known))}"


def from_dict(data: Mapping[str, Any]) -> Pattern:
    """The pattern that ``Pattern.to_dict`` described.

    Raises:
        ValueError: an unknown pattern or parameter, one missing, or a value that the pattern refuses.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("pattern"), str):
        raise ValueError(f"{data!r}: a pattern is a dictionary with its name under 'pattern'")
    name = data["pattern"]
    if name not in PATTERNS:
        raise ValueError(f"unknown pattern {name!r}: {nearest(name, PATTERNS)}")
    cls = PATTERNS[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "pattern"}
    if cls is PerHead and isinstance(values.get("patterns"), tuple):
        values["patterns"] = tuple(p if isinstance(p, Pattern) else from_dict(p) for p in values["patterns"])
    for key in values:
        if key not in fields:
            raise ValueError(f"pattern {name!r} has no parameter {key!r}: {nearest(key, fields)}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise ValueError(f"pattern {name!r} needs {' and '.join(missing)}, as in {_example(name)!r}")
    return cls(**values)


def from_text(text: str) -> Pattern:
    """The pattern of a text form such as ``neighborhood:window=33x33,stride=4`` or ``radial:decay=0.2``.

    Raises:
        ValueError: the text cannot be read, or :func:`from_dict` refuses it.

    Example:
        >>> from_text("groups:region=cross")
        Groups(size=(4, 8, 8), region='cross', reach=1, cross='planes')
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r}: a pattern's text form is a string such as 'neighborhood:window=33x33'")
    name, _, rest = text.strip().partition(":")
    data: dict[str, Any] = {"pattern": name.strip().lower()}
    # commas inside brackets belong to the patterns of a PerHead
    for part in filter(None, (p.strip() for p in re.split(r",(?![^\[]*\])", rest))):
        key, equals, value = part.partition("=")
        if not equals or not value.strip():
            raise ValueError(f"{text!r}: {part!r} is not of the form parameter=value")
        if key.strip() in data:
            raise ValueError(f"{text!r}: {key.strip()!r} stands twice")
        data[key.strip()] = _read_value(value.strip())
    return from_dict(data)


def _read_value(value: str) -> Any:
    if value.startswith("[") and value.endswith("]"):
        return tuple(from_text(part) for part in value[1:-1].split("|"))
    word = value.lower()
    if word in ("true", "false"):
        return word == "true"
    pieces = word.split("x")
    if len(pieces) > 1 and all(p in ("true", "false") for p in pieces):
        return tuple(p == "true" for p in pieces)
    try:
        numbers = tuple(int(p) for p in pieces)
        return numbers if len(numbers) > 1 else numbers[0]
    except ValueError:
        pass
    try:
        reals = tuple(float(p) for p in pieces)
        return reals if len(reals) > 1 else reals[0]
    except ValueError:
        return value


def _example(name: str) -> str:
    examples = {
        "neighborhood": "neighborhood:window=17x17",
        "sliding": "sliding:base=30x52",
        "disc": "disc:radius=16",
        "segments": "segments:lengths=4x4x77x77,allowed=1110x1101x1010x0101",
    }
    return examples.get(name, name)
