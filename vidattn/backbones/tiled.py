"""Exact inference in tiles: a convolutional stem without its whole maps in memory (MCUNetV2, Lin et al.,
arXiv 2110.15352).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import Conv2d, Pointwise

PER_TOKEN = (
    Pointwise,
    nn.Linear,
    nn.LayerNorm,
    nn.BatchNorm2d,
    nn.GELU,
    nn.ReLU,
    nn.SiLU,
    nn.Identity,
    nn.Dropout,
)
Range = tuple[int, int]


def run_tiled(layers: nn.Sequential, x: Tensor, tiles: tuple[int, int]) -> Tensor:
    """``layers(x)``, one tile of the output after the other; only tiles of the maps between are ever kept.

    A tile's range is followed back through the convolutions; a convolution's own padding is added only where
    the range leaves the map, so the result is that of the whole map, up to rounding. What tiles share is
    computed more than once.

    Args:
        layers: a ``Sequential``, nested or not, of the convolutions of ``vidattn.backbones.layers`` (zero
            padding) and layers that treat every token by itself: linear ones, norms of a token, batch norm
            in evaluation mode, activations.
        x: (B, H, W, C).
        tiles: tiles along the height and the width; no more than there are outputs.

    Returns:
        (B, H', W', C'), without gradient.

    Raises:
        TypeError: a layer of another kind.
        ValueError: a layer in training mode, padding other than zeros, or too many tiles.

    Example:
        >>> model = create_model("segman_t")
        >>> image = torch.randn(1, 512, 512, 3)
        >>> tokens = run_tiled(model.patch_embed, image, (4, 4))
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}: must be (batch, height, width, channels)")
    chain = list(_flat(layers))
    extents = [(x.shape[1], x.shape[2])]
    for layer in chain:
        extents.append(_out_extent(layer, extents[-1]))
    last = extents[-1]
    if any(not 1 <= count <= extent for count, extent in zip(tiles, last, strict=True)):
        raise ValueError(f"tiles={tiles}: must be from (1, 1) to the output's size {last}")
    out: Tensor | None = None
    with torch.no_grad():
        for place in product(*(range(count) for count in tiles)):
            rows, columns = (
                (n * extent // count, (n + 1) * extent // count)
                for n, extent, count in zip(place, last, tiles, strict=True)
            )
            tile = _tile(chain, extents, x, (rows, columns))
            if out is None:
                out = tile.new_empty(x.shape[0], *last, tile.shape[-1])
            out[:, rows[0] : rows[1], columns[0] : columns[1]] = tile
    assert out is not None
    return out


def _flat(layers: nn.Module) -> Iterator[nn.Module]:
    """The layers in order, checked."""
    if isinstance(layers, nn.Sequential):
        for layer in layers:
            yield from _flat(layer)
        return
    kind = type(layers).__name__
    if not isinstance(layers, (Conv2d, *PER_TOKEN)):
        raise TypeError(f"layers has a {kind}: must be convolutions and layers that treat tokens one by one")
    if isinstance(layers, (nn.BatchNorm2d, nn.Dropout)) and layers.training:
        raise ValueError(f"layers has a {kind} in training mode: call eval() first")
    if isinstance(layers, nn.LayerNorm) and len(layers.normalized_shape) != 1:
        raise ValueError(f"layers has a LayerNorm over {layers.normalized_shape}: must be over channels only")
    if isinstance(layers, Conv2d) and (layers.padding_mode != "zeros" or isinstance(layers.padding, str)):
        raise ValueError(
            f"layers has a Conv2d with padding={layers.padding!r} of {layers.padding_mode!r}: must be zeros,"
            " given as numbers"
        )
    yield layers


def _numbers(conv: Conv2d) -> list[tuple[int, int, int]]:
    """(reach, stride, padding) of both axes; reach is the extent of the dilated kernel."""
    padding = [int(p) for p in conv.padding]
    return [
        (d * (k - 1) + 1, s, p)
        for k, d, s, p in zip(conv.kernel_size, conv.dilation, conv.stride, padding, strict=True)
    ]


def _out_extent(layer: nn.Module, extent: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(layer, Conv2d):
        return extent
    height, width = ((n + 2 * p - k) // s + 1 for n, (k, s, p) in zip(extent, _numbers(layer), strict=True))
    return height, width


def _tile(
    chain: Sequence[nn.Module], extents: Sequence[tuple[int, int]], x: Tensor, wanted: tuple[Range, Range]
) -> Tensor:
    """The output's range, from as much of x as it needs."""
    ranges, outside = [wanted], []
    for layer, extent in zip(reversed(chain), reversed(extents[:-1]), strict=True):
        pads = (0, 0, 0, 0)
        if isinstance(layer, Conv2d):
            needed = [
                (a * s - p, (b - 1) * s - p + k)
                for (a, b), (k, s, p) in zip(ranges[-1], _numbers(layer), strict=True)
            ]
            kept = [(max(a, 0), min(b, n)) for (a, b), n in zip(needed, extent, strict=True)]
            (top, bottom), (left, right) = (
                (inner[0] - outer[0], outer[1] - inner[1]) for inner, outer in zip(kept, needed, strict=True)
            )
            pads = (left, right, top, bottom)
            ranges.append((kept[0], kept[1]))
        outside.append(pads)
    rows, columns = ranges[-1]
    x = x[:, rows[0] : rows[1], columns[0] : columns[1]]
    for layer, pads in zip(chain, reversed(outside), strict=True):
        x = _convolved(layer, x, pads) if isinstance(layer, Conv2d) else layer(x)
    return x


def _convolved(conv: Conv2d, x: Tensor, pads: tuple[int, int, int, int]) -> Tensor:
    """The convolution without its own padding, and with that of the tile."""
    image = F.pad(x.movedim(-1, 1), pads)
    out = F.conv2d(image, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    return out.movedim(1, -1)
