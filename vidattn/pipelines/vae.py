"""VAE encode and decode in tiles: exact where only convolutions and group norms are cut, else feathered.

A tile with a margin as wide as the receptive field computes what the whole would, but for group norms, whose
statistics are of the whole map. They are gathered first: one pass over all tiles for each norm, in which the
norms before it already use their statistics of the whole (two-pass group norm, once per norm). The middle
block, with its attention over the latent map, is not cut: it runs at the latent resolution. The price is
time, about as many decodes as half the number of norms; in return no seam is left, and memory follows the
tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Seams:
    """How well tiles fit.

    Args:
        exact: nothing was approximated; the differences are then 0.
        tiles: how many there were.
        largest: difference between two tiles where they overlap, before they were blended.
        rms: the same, root mean square.
    """

    exact: bool
    tiles: int
    largest: float = 0.0
    rms: float = 0.0


class _Reached(Exception):
    """The norm whose statistics are gathered was reached."""


class _WholeNorms:
    """Group norms with statistics of a whole map that is seen tile by tile."""

    def __init__(self, norms: list[nn.GroupNorm]) -> None:
        self.norms = norms
        self.known: dict[int, tuple[Tensor, Tensor]] = {}
        self.order: list[int] = []  # of the norms that were met, by their place in the run
        self.sums: list[Tensor] = []
        self.inside: Callable[[Tensor], Tensor] = lambda values: values

    def forward(self, number: int, x: Tensor) -> Tensor:
        norm = self.norms[number]
        batch, channels = x.shape[:2]
        if number not in self.known:
            part = self.inside(x).double().reshape(batch, norm.num_groups, -1)
            count = torch.full_like(part[..., 0], part.shape[-1])
            self.sums.append(torch.stack([part.sum(-1), part.square().sum(-1), count]))
            self.order.append(number)
            raise _Reached
        mean, inverse = (v.repeat_interleave(channels // norm.num_groups, 1) for v in self.known[number])
        shape = (batch, channels, *[1] * (x.ndim - 2))
        made = (x.float() - mean.view(shape).float()) * inverse.view(shape).float()
        if norm.affine:
            each = (1, channels, *[1] * (x.ndim - 2))
            made = made * norm.weight.float().view(each) + norm.bias.float().view(each)
        return made.to(x.dtype)

    def learn(self) -> None:
        """Turn the sums of one pass into the statistics of its norm."""
        number = self.order[-1]
        total, squares, count = torch.stack(self.sums).sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self.known[number] = mean, (variance + self.norms[number].eps).rsqrt()
        self.sums, self.order = [], []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The norms' ``forward`` is this one's for the length of a ``with`` block."""
        old = [norm.__dict__.get("forward") for norm in self.norms]
        try:
            for i, norm in enumerate(self.norms):
                norm.forward = lambda x, i=i: self.forward(i, x)  # type: ignore[method-assign, misc]
            yield
        finally:
            for norm, before in zip(self.norms, old, strict=True):
                norm.__dict__.pop("forward", None)
                if before is not None:
                    norm.forward = before  # type: ignore[method-assign]


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    return [(start, min(length, start + tile)) for start in range(0, length, tile)]


def _exact(
    stage: Callable[[Tensor], Tensor],
    module_norms: list[nn.GroupNorm],
    values: Tensor,
    tile: int,
    margin: int,
) -> tuple[Tensor, int]:
    """``stage(values)`` by tiles: (result, number of tiles)."""
    height, width = values.shape[-2:]
    boxes = [(y, x) for y in _spans(height, tile) for x in _spans(width, tile)]
    norms = _WholeNorms(module_norms)

    def cut(box: tuple[tuple[int, int], tuple[int, int]]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        outer = [
            (max(0, a - margin), min(n, b + margin)) for (a, b), n in zip(box, (height, width), strict=True)
        ]
        piece = values[..., outer[0][0] : outer[0][1], outer[1][0] : outer[1][1]]

        def inside(part: Tensor) -> Tensor:
            for axis, (a, b), (start, stop) in zip((-2, -1), box, outer, strict=True):
                size = part.shape[axis]
                ends = [(end - start) * size // (stop - start) for end in (a, b)]
                part = part.narrow(axis, ends[0], ends[1] - ends[0])
            return part

        return piece, inside

    with norms.installed():
        while len(norms.known) < len(module_norms):
            for box in boxes:
                piece, norms.inside = cut(box)
                try:
                    stage(piece)
                except _Reached:
                    continue
            if not norms.sums:  # norms that the stage does not reach
                break
            norms.learn()
        rows = []
        for y in _spans(height, tile):
            made = []
            for x in _spans(width, tile):
                piece, inside = cut((y, x))
                made.append(inside(stage(piece)))
            rows.append(torch.cat(made, -1))
    return torch.cat(rows, -2), len(boxes)


def _decoder_parts(vae: Any) -> tuple[Callable, Callable, list[nn.GroupNorm], int] | None:
    """(head, tail, norms of the tail, its margin in latents) of a decoder that can be cut exactly."""
    decoder = getattr(vae, "decoder", None)
    names = ("conv_in", "mid_block", "up_blocks", "conv_norm_out", "conv_act", "conv_out")
    if type(vae).__name__ != "AutoencoderKL" or not all(hasattr(decoder, name) for name in names):
        return None
    tail = [*decoder.up_blocks, decoder.conv_norm_out, decoder.conv_out]
    if any("Attn" in type(block).__name__ or "Attention" in type(block).__name__ for block in tail):
        return None
    if not isinstance(decoder.conv_norm_out, nn.GroupNorm):
        return None

    def head(z: Tensor) -> Tensor:
        z = vae.post_quant_conv(z) if vae.post_quant_conv is not None else z
        return decoder.mid_block(decoder.conv_in(z))

    def rest(h: Tensor) -> Tensor:
        for block in decoder.up_blocks:
            h = block(h)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))

    reach, scale = 0.0, 1.0
    for block in decoder.up_blocks:
        reach += 2 * len(block.resnets) * scale
        if block.upsamplers:
            scale /= 2
            reach += scale
    margin = math.ceil(reach + scale) + len(decoder.up_blocks)
    return head, rest, _norms(tail), margin


def _encoder_parts(vae: Any) -> tuple[Callable, Callable, list[nn.GroupNorm], int, int] | None:
    """(tail, tiled part, its norms, margin in pixels, pixels per latent) of an encoder."""
    encoder = getattr(vae, "encoder", None)
    if _decoder_parts(vae) is None or not hasattr(encoder, "down_blocks"):
        return None
    blocks = list(encoder.down_blocks)
    if any("Attn" in type(block).__name__ for block in blocks):
        return None

    def tiled(x: Tensor) -> Tensor:
        x = encoder.conv_in(x)
        for block in blocks:
            x = block(x)
        return x

    def tail(h: Tensor) -> Tensor:
        h = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(h))))
        return vae.quant_conv(h) if vae.quant_conv is not None else h

    reach, scale = 1, 1
    for block in blocks:
        reach += 2 * len(block.resnets) * scale
        if block.downsamplers:
            reach += 2 * scale
            scale *= 2
    return tail, tiled, _norms(blocks), -(-reach // scale) * scale, scale


def _norms(modules: list[Any]) -> list[nn.GroupNorm]:
    return [m for module in modules for m in module.modules() if isinstance(m, nn.GroupNorm)]


def tiled_decode(vae: Any, latents: Tensor, tile: int = 128, overlap: int = 16) -> tuple[Tensor, Seams]:
    """``vae.decode(latents).sample`` in tiles.

    Exact for ``AutoencoderKL`` (FLUX, SD, SDXL, SD3, PixArt ...), whatever the tile; other VAEs are decoded in
    overlapping tiles that fade into each other, and the difference between them is measured.

    Args:
        vae: a VAE of diffusers.
        latents: (batch, channels, [frames,] height, width), as the VAE takes them.
        tile: latents on a side.
        overlap: latents that feathered tiles share.

    Returns:
        The values, and how well the tiles fit.

    Raises:
        ValueError: a tile that is not larger than the overlap.

    Example:
        >>> image, seams = tiled_decode(pipe.vae, latents, tile=96)
        >>> seams.exact
        True
    """
    _check_tile(tile, overlap)
    parts = _decoder_parts(vae)
    with torch.no_grad():
        if parts is None:
            return _feathered(lambda z: vae.decode(z, return_dict=False)[0], latents, tile, overlap)
        head, rest, norms, margin = parts
        made, tiles = _exact(rest, norms, head(latents), tile, margin)
    return made, Seams(True, tiles)


def tiled_encode(vae: Any, pictures: Tensor, tile: int = 1024, overlap: int = 128) -> tuple[Tensor, Seams]:
    """The parameters of ``vae.encode(pictures)``'s distribution (mean and log variance), in tiles.

    Args:
        vae: a VAE of diffusers.
        pictures: (batch, 3, [frames,] height, width) in [-1, 1].
        tile: pixels on a side; made a multiple of what one latent covers.
        overlap: pixels that feathered tiles share.

    Returns:
        The values, and how well the tiles fit; exact where ``tiled_decode`` is.

    Raises:
        ValueError: a tile that is not larger than the overlap.

    Example:
        >>> parameters, seams = tiled_encode(pipe.vae, pictures, tile=512)
        >>> latents = parameters.chunk(2, dim=1)[0]
    """
    _check_tile(tile, overlap)
    parts = _encoder_parts(vae)
    with torch.no_grad():
        if parts is None:
            return _feathered(
                lambda x: cast(Tensor, vae.encode(x).latent_dist.parameters), pictures, tile, overlap
            )
        tail, tiled, norms, margin, step = parts
        made, tiles = _exact(tiled, norms, pictures, max(step, tile // step * step), margin)
        return tail(made), Seams(True, tiles)


def _check_tile(tile: int, overlap: int) -> None:
    if not 0 <= overlap < tile:
        raise ValueError(f"tile={tile}, overlap={overlap}: the tile must be larger than the overlap")


def _feathered(
    stage: Callable[[Tensor], Tensor], values: Tensor, tile: int, overlap: int
) -> tuple[Tensor, Seams]:
    """Overlapping tiles, blended with weights that fall linearly towards their inner edges."""
    height, width = values.shape[-2:]
    total: Tensor | None = None
    weights = torch.zeros(1)
    squares, largest, count, tiles = 0.0, 0.0, 0, 0
    for y0 in _starts(height, tile, overlap):
        for x0 in _starts(width, tile, overlap):
            piece = values[..., y0 : y0 + tile, x0 : x0 + tile]
            made = stage(piece).float()
            up = made.shape[-1] / piece.shape[-1]
            if total is None:
                size = (round(height * up), round(width * up))
                total, weights = made.new_zeros((*made.shape[:-2], *size)), made.new_zeros(size)
            box = [
                slice(round(o * up), round(o * up) + n)
                for o, n in ((y0, made.shape[-2]), (x0, made.shape[-1]))
            ]
            seen = weights[box[0], box[1]]
            gap = (total[..., box[0], box[1]] / seen.clamp(min=1e-6) - made)[..., seen > 0]
            if gap.numel():
                largest = max(largest, gap.abs().max().item())
                squares, count = squares + gap.double().square().sum().item(), count + gap.numel()
            ramp = torch.outer(*(_ramp(n, round(overlap * up), made.device) for n in made.shape[-2:]))
            total[..., box[0], box[1]] += made * ramp
            weights[box[0], box[1]] += ramp
            tiles += 1
    assert total is not None, "there is at least one tile"
    return (total / weights).to(values.dtype), Seams(
        tiles == 1, tiles, largest, math.sqrt(squares / max(count, 1))
    )


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, tile - overlap))
    return [*starts, length - tile]


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    edge = (torch.arange(length, device=device) + 1.0) / (overlap + 1)
    return torch.minimum(edge, edge.flip(0)).clamp(max=1.0)
