"""One file of facts per family of diffusers models; a file here with a ``FAMILY`` in it is one.

A family says three things about its models: which modules are self-attention over the token grid, how to read
the grid and the place of the text from the arguments of one forward, and the grid size that the models were
trained at.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from vidattn.layout import TokenLayout

Arguments = Mapping[str, Any]
"""Arguments of a model's forward by name."""


class GridUnreadable(Exception):
    """The grid cannot be told from the arguments of this forward; the text says why."""


@dataclass(frozen=True)
class Layer:
    """One self-attention module. Layers of one ``group`` see the same grid (a UNet has a group per level)."""

    name: str
    module: nn.Module
    group: Hashable = 0


@dataclass(frozen=True)
class Reading:
    """What one forward works on: a layout per group of layers, and a remark for the report."""

    layouts: Mapping[Hashable, TokenLayout]
    note: str = ""


@dataclass(frozen=True)
class Family:
    """Facts about one family.

    Args:
        name: as ``supported()`` and reports print it.
        classes: names of the model classes; subclasses count as well.
        kind: "image" or "video".
        layers: the self-attention layers of a model, in the order in which they run.
        read: the layouts of one forward; raises :class:`GridUnreadable`.
        native: (height, width) of a group's grid at the size that the model was trained at.
        timestep_scale: the scheduler's timestep divided by the one that the forward gets.
    """

    name: str
    classes: tuple[str, ...]
    kind: str
    layers: Callable[[nn.Module], Iterator[Layer]]
    read: Callable[[nn.Module, Arguments], Reading]
    native: Callable[[nn.Module, Hashable], tuple[int, int]]
    timestep_scale: float = 1.0


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """All families, in the order of their names."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return tuple(importlib.import_module(f"{__name__}.{name}").FAMILY for name in names)


def family_of(model: nn.Module) -> Family | None:
    """The family of a model, by the names of its class and its bases, or None."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((f for f in families() if names.intersection(f.classes)), None)
