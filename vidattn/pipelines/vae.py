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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidattn.pipelines.tiles import run_exactly


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


def _decoder_parts(vae: Any) -> tuple[Callable, Callable, list[nn.GroupNorm], int] | None:
    """(head, tail, norms of the tail, its margin in latents) of a decoder that can be cut exactly."""
    decoder: Any = getattr(vae, "decoder", None)
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
    encoder: Any = getattr(vae, "encoder", None)
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

    Exact for ``AutoencoderKL`` (FLUX, SD, SDXL, SD3, PixArt ...), whatever the tile; other VAEs are decoded
    in overlapping tiles that fade into each other, and the difference between them is measured.

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
        made, tiles = run_exactly(rest, norms, head(latents), tile, margin)
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
        made, tiles = run_exactly(tiled, norms, pictures, max(step, tile // step * step), margin)
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
