"""How much memory a run takes, before it runs; and VAEs that keep to a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.patches.targets import targets_of
from vidattn.pipelines.vae import Seams, tiled_decode, tiled_encode

_UNITS = (
    {"": 1, "B": 1}
    | {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}
    | {f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by rules of thumb: what grows with the size, and the weights exactly.

    Args:
        weights: of all models of the pipeline, as they are loaded.
        denoiser: activations of one forward of the denoiser: queries, keys, values and the feed-forward.
        vae: activations of the VAE's decoder at the full size, in one piece.
    """

    weights: int
    denoiser: int
    vae: int

    def __str__(self) -> str:
        parts = (f"{name} {getattr(self, name) / 2**30:.2f} GiB" for name in ("weights", "denoiser", "vae"))
        return ", ".join(parts)


def read_memory(text: int | str) -> int:
    """Bytes of a number, or of text as "20GiB".

    Raises:
        ValueError: no such amount.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(text))
    if isinstance(text, bool) or found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ValueError(f'max_memory={text!r}: bytes, or text as "20GiB" or "512MB"')
    return int(float(found[1]) * _UNITS[found[2]])


def estimate_memory(pipe: Any, height: int, width: int, frames: int = 1, batch: int = 1) -> MemoryEstimate:
    """What a run of this size takes, without running it.

    Args:
        pipe: a pipeline of diffusers.
        height: pixels.
        width: pixels.
        frames: of a clip.
        batch: pictures at a time, guidance not counted.

    Raises:
        TypeError: a pipeline without a supported model.

    Example:
        >>> print(estimate_memory(pipe, 4096, 4096))
    """
    modules = [m for m in pipe.components.values() if isinstance(m, nn.Module)]
    weights = sum(t.numel() * t.element_size() for m in modules for t in [*m.parameters(), *m.buffers()])
    model: Any = targets_of(pipe)[0].model
    layer = next(iter(targets_of(pipe)[0].family.layers(model))).module
    inner = max((m.out_features for m in layer.modules() if isinstance(m, nn.Linear)), default=64)
    times = math.ceil(frames / getattr(pipe, "vae_scale_factor_temporal", 1)) if frames > 1 else 1
    tokens = batch * times * (height * width) // token_pixels(pipe)
    # hidden states, q, k, v, output, and a feed-forward four times as wide with its activation
    denoiser = tokens * inner * 13 * model.dtype.itemsize
    return MemoryEstimate(weights, denoiser, batch * frames * decode_bytes(pipe.vae, height * width))


def token_pixels(pipe: Any) -> int:
    """Pixels of one frame that a token stands for (in UNets, at their finest attention)."""
    from vidattn.pipelines.sizes import size_step

    return size_step(pipe) ** 2


def decode_bytes(vae: Any, pixels: int) -> int:
    """Activations of the decoder's last level: its input, that normalized, and its output."""
    config = vae.config
    widths = config.get("block_out_channels") or [config.get("base_dim", 96), config.get("base_dim", 96) * 2]
    channels = 2 * max(widths[:2]) + widths[0]
    return pixels * channels * vae.dtype.itemsize


@contextmanager
def vae_within(vae: Any, pixels: int, budget: int | None) -> Iterator[list[Seams]]:
    """The VAE works in tiles where a picture of that many pixels would not fit the budget.

    Args:
        vae: of a pipeline; its ``decode`` and ``encode`` are replaced for the length of the ``with`` block.
        pixels: of one picture (or all frames of a clip).
        budget: bytes for activations; None leaves the VAE as it is.

    Yields:
        A list that gets one entry for each tiled call.
    """
    seams: list[Seams] = []
    if budget is None or decode_bytes(vae, pixels) <= budget:
        yield seams
        return
    factor = 2 ** (len(vae.config.get("block_out_channels") or [0] * 4) - 1)
    side = math.isqrt(max(1, budget * pixels // decode_bytes(vae, pixels)))
    tile = max(16, side // factor // 2)  # half: the margins come on top

    def decode(z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        with _overridden(vae, before):
            made, fit = tiled_decode(vae, z, tile, min(16, tile // 4))
        seams.append(fit)
        return DecoderOutput(sample=made) if return_dict else (made,)

    def encode(x: Tensor, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        with _overridden(vae, before):
            made, fit = tiled_encode(vae, x, tile * factor, min(16, tile // 4) * factor)
        seams.append(fit)
        found = DiagonalGaussianDistribution(made)
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    before = {name: vae.__dict__[name] for name in ("decode", "encode") if name in vae.__dict__}
    with _overridden(vae, {"decode": decode, "encode": encode}):
        yield seams


@contextmanager
def _overridden(vae: Any, methods: dict[str, Any]) -> Iterator[None]:
    """The VAE's ``decode`` and ``encode`` are these, else its class's own, in a ``with`` block."""
    names = ("decode", "encode")
    kept = {name: vae.__dict__.pop(name) for name in names if name in vae.__dict__}
    vae.__dict__.update(methods)
    try:
        yield
    finally:
        for name in names:
            vae.__dict__.pop(name, None)
        vae.__dict__.update(kept)


def check_budget(pipe: Any, estimate: MemoryEstimate, budget: int) -> None:
    """Refuse a run whose weights and activations cannot fit.

    Raises:
        ValueError: says what takes how much.
    """
    loaded = estimate.weights if torch.device(pipe.device).type != "cpu" else 0
    if loaded + estimate.denoiser > budget:
        raise ValueError(
            f"max_memory={budget / 2**30:.2f} GiB is too little for {type(pipe).__name__} here: {estimate}"
            " (the VAE can be tiled; for the weights, offload them: pipe.enable_model_cpu_offload())"
        )


def budget_for(
    pipe: Any, max_memory: int | str | None, size: tuple[int, int], call: dict[str, Any]
) -> int | None:
    """``max_memory`` in bytes, checked against the largest stage.

    Raises:
        ValueError: no amount of memory, or too little.
    """
    if max_memory is None:
        return None
    budget = read_memory(max_memory)
    check_budget(pipe, estimate_memory(pipe, *size, call.get("num_frames") or 1), budget)
    return budget
