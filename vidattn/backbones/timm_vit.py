"""Mixers in a pretrained Vision Transformer of timm's kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.backbones import mixers
from vidattn.backbones.mixers.base import Mixer
from vidattn.patterns.text import nearest


class MixerAttention(nn.Module):
    """A mixer under the signature of timm's attention: tokens (B, prefix + N, C), prefix tokens first.

    Args:
        mixer: what mixes the tokens.
        place: knows the grid of the image that is going through the model.
        prefix: number of prefix tokens.
    """

    def __init__(self, mixer: Mixer, place: GridReader, prefix: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.place = place
        self.prefix = prefix

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask and is_causal: mixers cannot honour a mask")
        grid = self.place.grid
        if grid is None or grid[0] * grid[1] != x.shape[1] - self.prefix:
            raise RuntimeError(f"{x.shape[1] - self.prefix} grid tokens, but the image's grid is {grid}")
        image = x[:, self.prefix :].unflatten(1, grid)
        if self.prefix == 0:
            return self.mixer(image).flatten(1, 2)
        image, first = self.mixer(image, x[:, : self.prefix])
        return torch.cat([first, image.flatten(1, 2)], 1)


class GridReader:
    """A hook on the patch embedding that keeps the grid of the image at hand."""

    def __init__(self, patch: tuple[int, int], padded: bool) -> None:
        self.patch, self.padded = patch, padded
        self.grid: tuple[int, int] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        height, width = args[0].shape[-2:]
        up = (self.patch[0] - 1, self.patch[1] - 1) if self.padded else (0, 0)
        self.grid = ((height + up[0]) // self.patch[0], (width + up[1]) // self.patch[1])


class PatchedViT:
    """What :func:`patch_timm_vit` returns: the new modules as ``layers``, and ``undo()``."""

    def __init__(self, blocks: list[Any], layers: list[MixerAttention], hook: Any) -> None:
        self.blocks, self.layers, self._hook = blocks, layers, hook
        self._old = [block.attn for block in blocks]

    def undo(self) -> None:
        """Put the model's own attention back, with the weights that it had."""
        for block, old in zip(self.blocks, self._old, strict=True):
            block.attn = old
        self._hook.remove()


def patch_timm_vit(model: nn.Module, mixer: str | Callable[[int, int], Mixer], **options: Any) -> PatchedViT:
    """Set a mixer into every block of a timm Vision Transformer, starting from the pretrained projections.

    Queries, keys, values and output keep their weights; gates start at 1 and convolutions at 0. So window and
    routed mixers begin as the pretrained attention on fewer keys; linear mixers need training. Class token
    and registers see all tokens and are seen by all.

    Args:
        model: with timm's ``blocks``, ``patch_embed`` and ``num_prefix_tokens``.
        mixer: the name of a class in ``vidattn.backbones.mixers``, or a function of (channels, heads).
        **options: arguments of the mixer's class, where it is named.

    Returns:
        The new layers, and the way back.

    Raises:
        TypeError: a model of another kind, or options that the mixer does not take.
        ValueError: an unknown mixer, one that takes no prefix tokens where the model has some, or projections
            that it cannot start from. The model is not changed then.

    Example:
        >>> patched = patch_timm_vit(vit, "NeighborhoodAttention", kernel_size=7)
        >>> features = vit.forward_features(image)
        >>> patched.undo()
    """
    for name in ("blocks", "patch_embed", "num_prefix_tokens"):
        if not hasattr(model, name):
            raise TypeError(
                f"{type(model).__name__} has no {name}: it is no Vision Transformer of timm's kind"
            )
    host: Any = model
    blocks, embed, prefix = list(host.blocks), host.patch_embed, int(host.num_prefix_tokens)
    patch = embed.patch_size
    patch = (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))
    place = GridReader(patch, bool(getattr(embed, "dynamic_img_pad", False)))
    make = _maker(mixer, options)
    made = [MixerAttention(_started(make, block.attn, prefix), place, prefix) for block in blocks]
    patched = PatchedViT(blocks, made, embed.register_forward_pre_hook(place))
    for block, layer in zip(blocks, made, strict=True):
        block.attn = layer.train(block.training)
    return patched


def _maker(mixer: str | Callable[[int, int], Mixer], options: dict[str, Any]) -> Callable[[int, int], Mixer]:
    if not isinstance(mixer, str):
        if options:
            raise TypeError(f"options {sorted(options)} are for a mixer that is named, not for a function")
        return mixer
    names = [name for name in mixers.__all__ if name != "Mixer"]
    if mixer not in names:
        raise ValueError(f"mixer={mixer!r}: {nearest(mixer, names)}")
    kind = getattr(mixers, mixer)
    return lambda dim, heads: kind(dim, heads, **options)


def _started(make: Callable[[int, int], Mixer], attention: Any, prefix: int) -> Mixer:
    for name in ("qkv", "proj", "num_heads"):
        if not hasattr(attention, name):
            raise TypeError(f"{type(attention).__name__} has no {name}: it is no attention of timm's kind")
    for name in ("q_norm", "k_norm"):
        if not isinstance(getattr(attention, name, nn.Identity()), nn.Identity):
            raise ValueError(f"{type(attention).__name__} has a {name}, which no mixer here has")
    mixer = make(attention.qkv.in_features, attention.num_heads)
    if prefix and not mixer.takes_prefix:
        raise ValueError(f"{type(mixer).__name__} takes no prefix tokens, and the model has {prefix}")
    mixer.start_from(attention.qkv, attention.proj)
    return mixer.to(attention.qkv.weight.device, attention.qkv.weight.dtype)
