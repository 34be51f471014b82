"""What most video models have in common: stacks of blocks, and a latent that is cut into patches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from vidattn.layout import Grid, TokenLayout
from vidattn.patches.families import Arguments, GridUnreadable, Layer, Reading


def stacks(*names: str, attention: str = "attn1") -> Callable[[nn.Module], Iterator[Layer]]:
    """The reader of ``Family.layers`` for models whose blocks stand in lists of these names."""

    def layers(model: nn.Module) -> Iterator[Layer]:
        for name in names:
            for i, block in enumerate(getattr(model, name, ())):
                yield Layer(f"{name}.{i}.{attention}", getattr(block, attention))

    return layers


def latent(arguments: Arguments, name: str = "hidden_states") -> Tensor:
    """The five-dimensional latent among the arguments."""
    found = arguments.get(name)
    if not isinstance(found, Tensor) or found.ndim != 5:
        raise GridUnreadable(f"{name} is no (batch, channels, frames, height, width) latent")
    return found


def patched_grid(sizes: Sequence[int], patch: Sequence[int]) -> Grid:
    """(frames, height, width) in tokens."""
    frames, height, width = (n // p for n, p in zip(sizes, patch, strict=True))
    return frames, height, width


def config_patch(model: Any) -> Grid:
    """The patch of a model's configuration; ``patch_size_t`` may be missing or None."""
    side = model.config.patch_size
    return getattr(model.config, "patch_size_t", None) or 1, side, side


def read_latent(model: nn.Module, arguments: Arguments) -> Reading:
    """``Family.read`` for attention without text over a (B, C, T, H, W) latent."""
    return Reading({0: TokenLayout(patched_grid(latent(arguments).shape[2:], config_patch(model)))})


def text_tokens(arguments: Arguments, *names: str) -> int:
    """How many tokens the embeddings of these names have together; those that are None have none."""
    given = [arguments.get(name) for name in names or ("encoder_hidden_states",)]
    if not isinstance(given[0], Tensor):
        raise GridUnreadable("encoder_hidden_states is needed to find the grid in the sequence")
    return sum(text.shape[1] for text in given if isinstance(text, Tensor))


def sample_size(model: Any, group: Hashable) -> tuple[int, int]:
    """``Family.native`` from ``sample_height`` and ``sample_width`` of the configuration."""
    config = model.config
    return config.sample_height // config.patch_size, config.sample_width // config.patch_size
