"""``patch``'s arguments: checked, and read from recipe files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vidattn.backends import check_backend
from vidattn.patches.presets import PRESETS
from vidattn.patterns.text import nearest


@dataclass(frozen=True)
class Settings:
    """The arguments of one ``patch`` call; ``options`` are the preset's."""

    pattern: Any
    weights: Any = None
    dense_steps: int = 0
    dense_last_steps: int = 0
    dense_layers: Any = ()
    min_tokens: int | str = "auto"
    backend: str = "auto"
    strict: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> Settings:
        """The settings themselves, when kinds and ranges are right.

        Raises:
            ValueError, TypeError: naming the argument.
        """
        for name in ("dense_steps", "dense_last_steps"):
            _check_count(getattr(self, name), name)
        if self.min_tokens != "auto":
            _check_count(self.min_tokens, "min_tokens", or_auto=" or 'auto'")
        if not isinstance(self.backend, str):
            raise TypeError(f"backend={self.backend!r}: must be a string")
        check_backend(self.backend)
        if not isinstance(self.strict, bool):
            raise TypeError(f"strict={self.strict!r}: must be True or False")
        if self.weights is not None and not isinstance(self.weights, (str, os.PathLike)):
            raise TypeError(f"weights={self.weights!r}: give the path of a .safetensors file")
        return self

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments that make ``patch`` do the same again."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("pattern", "options")}
        return {**own, **self.options}


def _check_count(value: Any, name: str, or_auto: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: must be an integer{or_auto}")
    if value < 0:
        raise ValueError(f"{name}={value!r}: must be at least 0")


def with_recipe(settings: Settings) -> Settings:
    """``settings`` with those of the recipe that its pattern names, if any; arguments of the call win.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no JSON object with a pattern and arguments of ``patch``.
    """
    pattern = settings.pattern
    if not isinstance(pattern, os.PathLike) and not (
        isinstance(pattern, str) and pattern.lower().endswith(".json")
    ):
        return settings
    path = Path(pattern)
    if not path.is_file():
        raise FileNotFoundError(f"recipe {str(path)!r}: there is no such file")
    data = _read_recipe(path)
    own = {f.name for f in fields(Settings)} - {"options"}
    read = Settings(data["pattern"], **{k: v for k, v in data.items() if k in own - {"pattern"}})
    if isinstance(read.weights, str):
        read = replace(read, weights=str(path.parent / read.weights))
    defaults = Settings(None)
    given = {
        k: getattr(settings, k) for k in own - {"pattern"} if getattr(settings, k) != getattr(defaults, k)
    }
    written = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k not in own}
    return replace(read, **given, options={**written, **settings.options})


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"recipe {str(path)!r}: not readable as JSON ({error})") from error
    if not isinstance(data, dict) or "pattern" not in data:
        raise ValueError(
            f"recipe {str(path)!r}: must be an object with 'pattern' and other arguments of patch"
        )
    if isinstance(data["pattern"], str) and data["pattern"].lower().endswith(".json"):
        raise ValueError(f"recipe {str(path)!r}: its pattern is another recipe")
    known = {f.name for f in fields(Settings)} - {"options"}
    name = data["pattern"].partition(":")[0].strip().lower() if isinstance(data["pattern"], str) else ""
    options = PRESETS[name].options() if name in PRESETS else {}
    for key in data:
        if key not in known and key not in options:
            raise ValueError(
                f"recipe {str(path)!r}: unknown argument {key!r}: {nearest(key, [*known, *options])}"
            )
    return data
