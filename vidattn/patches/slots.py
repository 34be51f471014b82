"""What an attention module carries while it is patched, and what the current thread is doing.

Compiled graphs read the objects here. Layers that run the same way share one :class:`Slot`, because dynamo
would compile a graph per layer if they did not; and a step number or a layer's name is never read where it
can be traced.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vidattn.layout import TokenLayout
from vidattn.patterns import Pattern

if TYPE_CHECKING:
    from vidattn.patches.schedule import Stage
    from vidattn.patches.substitutes import Substitute

SLOT = "_vidattn_slot"
"""Attribute of a patched attention module: its :class:`Slot`."""
LAYER = "_vidattn_layer"
"""Attribute of a patched attention module: its name and log, read only outside compiled graphs."""


@dataclass(frozen=True, eq=False)
class Decision:
    """How the layers of one slot run during one forward.

    ``pattern`` None means dense, through the model's own attention, for ``reason``; ``fallback`` says that
    this was not asked for. ``steps`` names the step class that the forward belongs to. ``mask_reason`` says
    why calls with an attention mask run dense; "" when the mask hides what ``Slot.text_valid`` says. Graphs
    read ``extent``, an empty tensor of the grid's shape, and ``text``, the side on which text stands
    ("before", "after", "both" or ""), instead of numbers: numbers would be constants to them, and every size
    a new graph. The layout has no ``text_valid``: one decision serves prompts of all lengths. ``trimmed``
    and ``own_text`` as in a family's reading. Where items of a batch run differently, ``parts`` has a
    decision for each of its equal pieces, and the rest means nothing; ``share`` is a part's of the batch.
    ``factor`` is one more of the scores' scale.
    """

    layout: TokenLayout | None
    pattern: Pattern | Substitute | None
    density: float
    steps: str
    backend: str = ""
    reason: str = ""
    fallback: bool = False
    note: str = ""
    mask_reason: str = ""
    text: str = ""
    trimmed: bool = False
    own_text: bool = False
    extent: Tensor | None = None
    parts: tuple[Decision, ...] = ()
    share: float = 1.0
    factor: float = 1.0

    def each(self) -> tuple[Decision, ...]:
        """The parts, or the decision itself."""
        return self.parts or (self,)


@dataclass(frozen=True)
class SlotSpec:
    """What is fixed when a model is patched: whence the pattern, for which layers, and who computes it.

    The first of the ``stages`` that holds counts; where none does, the layers are dense.
    """

    stages: tuple[Stage, ...]
    group: Any
    backend: str
    strict: bool
    trained: bool = False  # weights came with the patch


class Slot(threading.local):
    """A :class:`SlotSpec`, and for the forward that this thread is running its decision and, where prompts
    are padded, the number of real text tokens per item.

    ``threading.local`` runs ``__init__`` once per thread, so that ``decision`` exists before a graph first
    reads it.
    """

    def __init__(self, spec: SlotSpec) -> None:
        self.spec = spec
        self.decision: Decision | None = None
        self.text_valid: Tensor | None = None

    def __reduce__(self) -> tuple[type[Slot], tuple[SlotSpec]]:
        return Slot, (self.spec,)


class Current(threading.local):
    """The attention module that this thread is inside of."""

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.layer: Any = None  # LayerLog, outside compiled graphs
        self.reached = False  # whether the layer called attention on its grid
        self.missed = ""  # why a call of the layer was none on its grid
        self.mixer: Any = None  # modules of the layer's substitute
        self.inputs: tuple[Any, Any] = (None, None)  # what the layer was given: hidden states, and text apart
        self.look: Any = None  # whoever observes, see observe.py


CURRENT = Current()
