"""OmniGen: text (with reference images in it) and the time token first, the image last.

A mask lets the image see all real tokens; text sees what stands before it, and so keeps the model's own
attention. Prompts of a batch are padded in front.
"""

from __future__ import annotations

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import CONDITIONAL_FIRST, Arguments, Family, Reading
from vidattn.patches.families._image import latent_grid, native_of, stack_layers
from vidattn.patches.values import once_per_tensor


@once_per_tensor
def _seen(mask: Tensor) -> Tensor | str:
    """What the last row of a (B, S, S) mask sees, as a mask (B, S); or why that is not the image's."""
    if mask.is_meta or mask.ndim != 3:
        return f"attention_mask of shape {tuple(mask.shape)}"
    return mask.detach()[:, -1] != 0


@once_per_tensor
def _from_the_end(mask: Tensor) -> int:
    """How many rows at the end of a mask are alike in every item: at least the image's, if it is one."""
    alike = (mask == mask[:, -1:]).all(2).all(0)
    other = (~alike).nonzero()
    return mask.shape[1] - 1 - int(other[-1]) if len(other) else mask.shape[1]


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    grid, ids = latent_grid(model, arguments), arguments.get("input_ids")
    before, image = 1 + (ids.shape[1] if isinstance(ids, Tensor) else 0), grid[1] * grid[2]
    layout, mask = TokenLayout(grid, text_before=before), arguments.get("attention_mask")
    if not isinstance(mask, Tensor):
        return Reading({0: layout})
    seen = _seen(mask)
    if isinstance(seen, str):
        return Reading({0: seen})
    if mask.shape[1] != layout.tokens or _from_the_end(mask) < image or not bool(seen[:, before:].all()):
        return Reading({0: "attention_mask does not let the image see all of itself"})
    text = seen[:, :before]
    if bool((text[:, :-1] & ~text[:, 1:]).any()):
        return Reading({0: "attention_mask hides text behind other text"})
    if not bool(text.all()):
        layout = TokenLayout(grid, before, 0, text.sum(1))
    return Reading({0: layout}, mask_reason="", own_text=True)


FAMILY = Family(
    "omnigen",
    ("OmniGenTransformer2DModel",),
    "image",
    stack_layers("layers", attention="self_attn"),
    _read,
    native_of(64, 64),  # 1024 px
    guidance=CONDITIONAL_FIRST,
)
