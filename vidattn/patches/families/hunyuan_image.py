"""HunyuanImage 2.1 and its refiner: joint attention, text last, always with a mask over the text's padding.

With a second text encoder the model itself moves all padding behind all real tokens.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._image import native_of, stack_layers, tensor, text_length
from vidattn.patches.values import padded


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    latent, mask = tensor(arguments, "hidden_states"), tensor(arguments, "encoder_attention_mask")
    patch = tuple(cast(Any, model).config.patch_size)
    if latent.ndim != 2 + len(patch):
        raise GridUnreadable(f"hidden_states has {latent.ndim - 2} axes for patches of {len(patch)}")
    grid = tuple(n // p for n, p in zip(latent.shape[2:], patch, strict=True))
    second = arguments.get("encoder_hidden_states_2")
    if cast(Any, model).context_embedder_2 is None or second is None:
        layout, reason = padded(TokenLayout(grid, text_after=text_length(arguments)), mask)
        return Reading({0: layout}, mask_reason=reason)
    length = text_length(arguments) + second.shape[1]
    valid = mask.bool().sum(1) + tensor(arguments, "encoder_attention_mask_2").bool().sum(1)
    return Reading({0: TokenLayout(grid, 0, length, valid)}, mask_reason="")


FAMILY = Family(
    "hunyuan_image",
    ("HunyuanImageTransformer2DModel",),
    "image",
    stack_layers("transformer_blocks", "single_transformer_blocks"),
    _read,
    native_of(64, 64),  # 2048 px, with a VAE that shrinks by 32
)
