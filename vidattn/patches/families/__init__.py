"""One file of facts per family of diffusers models; a file here with a ``FAMILY`` in it is one.

A family says three things about its models: which modules are self-attention over the token grid, how to read
the grid and the place of the text from the arguments of one forward, and the grid size that the models were
trained at.

Attention masks: a call with a mask runs dense, unless the family's reader has said what the mask means. Where
it only hides padding behind the text (whatever its shape and type are at the call), the reader gives the
layout a ``text_valid``, an integer tensor (B,) with the number of real text tokens per item, and sets
``Reading(..., mask_reason="")``: "a mask at the call says what the layout says, and no more". Without
``text_valid`` that means: a mask of no effect. ``vidattn.patches.values.padded`` does it from the prompt mask
among the forward's arguments, and gives the reason where it cannot be told so::

    layout = TokenLayout(grid, text_after=text.shape[1])
    layout, reason = padded(layout, arguments.get("encoder_attention_mask"))
    return Reading({0: layout}, mask_reason=reason)

``padded`` looks at the values (one wait for the device per mask object; pipelines pass one object at every
step), and so may any reader: it runs before the forward, never in a compiled graph. Calls without a mask
never use ``text_valid``. Counts are best given as a tensor on the device: graphs and kernels take it as an
input, so that prompts of other lengths neither recompile nor wait for the device.
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


UNCONDITIONAL_FIRST = ("unconditional", "conditional")
CONDITIONAL_FIRST = ("conditional", "unconditional")
"""Orders of guidance branches in a batch."""


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
    """What one forward works on.

    Args:
        layouts: a layout per group of layers, or why the group runs dense in this forward.
        note: a remark for the report.
        mask_reason: why calls with an attention mask run dense; "" when masks say no more than ``text_valid``
            of the layouts does.
        trimmed: calls may have less text behind the grid than the layouts say: its padding was dropped.
        own_text: queries of the text in front of the grid keep the model's own attention and mask, and
            ``text_valid`` counts from the end of that text.
    """

    layouts: Mapping[Hashable, TokenLayout | str]
    note: str = ""
    mask_reason: str = "an attention mask is given"
    trimmed: bool = False
    own_text: bool = False


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
        timestep: the name of the forward's timestep argument.
        timestep_scale: the scheduler's timestep is the forward's times this ...
        timestep_offset: ... plus this.
        guidance: the branches of classifier-free guidance in a batch, in the order in which pipelines stack
            them; () where pipelines call the model once for each, the conditional branch first.
    """

    name: str
    classes: tuple[str, ...]
    kind: str
    layers: Callable[[nn.Module], Iterator[Layer]]
    read: Callable[[nn.Module, Arguments], Reading]
    native: Callable[[nn.Module, Hashable], tuple[int, int]]
    timestep: str = "timestep"
    timestep_scale: float = 1.0
    timestep_offset: float = 0.0
    guidance: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """All families, in the order of their names."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return tuple(importlib.import_module(f"{__name__}.{name}").FAMILY for name in names)


def family_of(model: nn.Module) -> Family | None:
    """The family of a model, by the names of its class and its bases, or None."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((f for f in families() if names.intersection(f.classes)), None)
