"""What several image families share: a latent cut into patches, attention under one name in each block."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, cast

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, GridUnreadable, Layer, Reading


def stack_layers(*stacks: str, attention: str = "attn") -> Callable[[nn.Module], Iterator[Layer]]:
    """``attention`` of every block of the stacks, in order; stacks that a model lacks are left out."""

    def layers(model: nn.Module) -> Iterator[Layer]:
        for stack in stacks:
            for i, block in enumerate(cast(Any, getattr(model, stack, ()))):
                yield Layer(f"{stack}.{i}.{attention}", cast(nn.Module, block.get_submodule(attention)))

    return layers


def tensor(arguments: Arguments, name: str) -> Tensor:
    """An argument that must be a tensor.

    Raises:
        GridUnreadable: it is none.
    """
    found = arguments.get(name)
    if not isinstance(found, Tensor):
        raise GridUnreadable(f"{name} is needed to read the grid")
    return found


def latent_grid(model: nn.Module, arguments: Arguments, name: str = "hidden_states") -> tuple[int, int, int]:
    """The grid of a latent (batch, channels, height, width) cut into square patches.

    Raises:
        GridUnreadable: there is no such latent.
    """
    latent = arguments.get(name)
    if not isinstance(latent, Tensor) or latent.ndim != 4:
        raise GridUnreadable(f"{name} is no (batch, channels, height, width) latent")
    patch = int(cast(Any, model).config.patch_size)
    return 1, latent.shape[2] // patch, latent.shape[3] // patch


def text_length(arguments: Arguments) -> int:
    """Tokens of ``encoder_hidden_states``; 0 without it."""
    text = arguments.get("encoder_hidden_states")
    return text.shape[1] if isinstance(text, Tensor) else 0


def read_image_only(model: nn.Module, arguments: Arguments) -> Reading:
    """Self-attention over the latent alone."""
    return Reading({0: TokenLayout(latent_grid(model, arguments))})


def read_text_first(model: nn.Module, arguments: Arguments) -> Reading:
    """Joint attention, text in front, no mask."""
    return Reading({0: TokenLayout(latent_grid(model, arguments), text_before=text_length(arguments))})


def native_sample(model: nn.Module, group: Hashable) -> tuple[int, int]:
    """The grid of ``config.sample_size``."""
    config = cast(Any, model).config
    side = int(config.sample_size) // int(config.patch_size)
    return side, side


def native_of(height: int, width: int) -> Callable[[nn.Module, Hashable], tuple[int, int]]:
    """Always the same grid, for models whose config does not tell it."""
    return lambda model, group: (height, width)
