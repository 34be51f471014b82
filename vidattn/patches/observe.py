"""Looking at the self-attention of a model while it runs, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vidattn.layout import TokenLayout
from vidattn.patches.api import patched
from vidattn.patches.slots import CURRENT

Look = Callable[[str, Tensor, Tensor, TokenLayout, float | None], None]
"""Called with the layer's name, query (B, S, H, D), key, where the tokens are, and the scale or None."""


@contextmanager
def observed(pipe_or_model: Any, look: Look) -> Iterator[None]:
    """Calls ``look`` at every self-attention over the token grid that this thread runs in the block.

    Results do not change. A patch that was on is taken off for the length of the block, so that what is seen
    is the model's own attention.

    Args:
        pipe_or_model: as for ``patch``.
        look: called before each attention, with tensors that it must not change.

    Raises:
        TypeError: nothing in it can be patched, and so observed.
    """
    with patched(pipe_or_model, "full"):
        outer, CURRENT.look = CURRENT.look, look
        try:
            yield
        finally:
            CURRENT.look = outer
