"""What families learn from the values of tensors: read once per tensor, because reading waits for the device.

Pipelines pass the same position ids and prompt masks at every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vidattn.layout import TokenLayout

Found = TypeVar("Found")


def once_per_tensor(function: Callable[[Tensor], Found]) -> Callable[[Tensor], Found]:
    """Remember what ``function`` found in a tensor, until the tensor is written to or dies."""
    seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @functools.wraps(function)
    def remembered(tensor: Tensor) -> Found:
        version = None if tensor.is_inference() else tensor._version
        known: tuple[int | None, Found] | None = seen.get(tensor)
        if known is None or known[0] != version:
            known = (version, function(tensor))
            seen[tensor] = known
        return known[1]

    return remembered


def padded(layout: TokenLayout, mask: Tensor | None) -> tuple[TokenLayout, str]:
    """``layout`` with the text padding that a prompt mask marks.

    Args:
        layout: a layout without ``text_valid``.
        mask: (B, L), or (B, 1, 1, L), zero or False at padding, over the L text tokens of ``layout`` that
            stand on the side where it has text first; None when there is none. Whatever type: it is compared
            to zero.

    Returns:
        (layout, ""), with ``text_valid`` a tensor on the mask's device (None if all text is real); or the
        layout as it was and the reason why its padding cannot be told so: a reading's ``mask_reason``.
    """
    if mask is None:
        return layout, ""
    if mask.is_meta:
        return layout, "the prompt mask holds no values (meta device)"
    length = layout.text_before or layout.text_after
    if mask.ndim not in (2, 4) or mask.numel() != mask.shape[0] * length:
        return layout, f"a prompt mask of shape {tuple(mask.shape)} for {length} text tokens"
    found = _padding(mask)
    if isinstance(found, str):
        return layout, found
    if found is not None and layout.text_before and layout.text_after:
        return layout, "prompts are padded, and tokens that are no padding stand behind the grid"
    return replace(layout, text_valid=found), ""


def all_ones(mask: Tensor | None) -> bool:
    """Whether a mask is 1 everywhere: added to scores, or as a choice of keys, it then changes nothing."""
    return mask is None or (not mask.is_meta and _all_ones(mask))


@once_per_tensor
def _all_ones(mask: Tensor) -> bool:
    return bool((mask.detach() == 1).all())


@once_per_tensor
def _padding(mask: Tensor) -> Tensor | str | None:
    """Real tokens per item; None if all are real; or why the zeros are not trailing padding."""
    real = mask.detach().flatten(1) != 0
    if bool(real.all()):
        return None
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        return "the prompt mask hides tokens in front of others"
    return real.sum(1)
