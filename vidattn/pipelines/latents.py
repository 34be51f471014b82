"""Between pictures and the latents that a pipeline takes as ``latents=``.

Decoding is left to the pipelines; they have no public way back from a picture to their latents, so the facts
about each family's latents stand here: normalisation (from the VAE's config), frames, packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidattn.patches.targets import targets_of

# By family: whether latents are packed into tokens of 2x2, and whether the VAE works on frames.
_KINDS = {
    "auraflow": (False, False),
    "chroma": (True, False),
    "cogview4": (False, False),
    "flux": (True, False),
    "hunyuan_dit": (False, False),
    "hunyuan_image": (False, False),
    "hunyuan_video": (False, True),
    "lumina2": (False, False),
    "pixart": (False, False),
    "qwen_image": (True, True),
    "sd3": (False, False),
    "unet": (False, False),
    "wan": (False, True),
    "z_image": (False, False),
}


@dataclass(frozen=True)
class Latents:
    """How one pipeline holds pictures as latents.

    Args:
        pipe: the pipeline.
        family: name of its denoiser's family.
        packed: latents are (batch, tokens, 4 * channels).
        frames: the VAE takes and gives (batch, channels, frames, height, width).
        video: so does the denoiser.
    """

    pipe: Any
    family: str
    packed: bool
    frames: bool
    video: bool

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures, as (batch, channels, [frames,] height, width), the most likely ones.

        Args:
            pictures: (batch, frames, 3, height, width) in [0, 1]; a picture has one frame.
        """
        vae = self.pipe.vae
        wide = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
        dtype = vae.dtype
        if wide:  # as diffusers' own pipelines: this VAE overflows in float16
            vae.to(torch.float32)
        try:
            values = (pictures * 2 - 1).to(self.device, vae.dtype)
            values = values.movedim(2, 1) if self.frames else values[:, 0]
            with torch.no_grad():
                found = vae.encode(values).latent_dist.mode()
        finally:
            if wide:
                vae.to(dtype)
        found = self._normalized(found.float())
        return found[:, :, 0] if self.frames and not self.video else found

    def _normalized(self, latents: Tensor) -> Tensor:
        config = self.pipe.vae.config
        scale = config.get("scaling_factor") or 1.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            shape = (1, -1, *[1] * (latents.ndim - 2))
            shift, spread = (torch.tensor(x, device=latents.device).view(shape) for x in (mean, std))
            return (latents - shift) * scale / spread
        return (latents - (config.get("shift_factor") or 0.0)) * scale

    def pack(self, latents: Tensor) -> Tensor:
        """As the pipeline takes them."""
        if not self.packed:
            return latents
        batch, channels, height, width = latents.shape
        cells = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return cells.reshape(batch, height // 2 * (width // 2), channels * 4)

    def unpack(self, latents: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`pack`, for latents of the spatial shape of ``like``."""
        if not self.packed:
            return latents
        height, width = like.shape[-2:]
        cells = latents.view(latents.shape[0], height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(latents.shape[0], -1, height, width)

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs; with CPU offload, that is not where its weights lie."""
        return torch.device(getattr(self.pipe, "_execution_device", None) or self.pipe.device)


def latents_of(pipe: Any) -> Latents:
    """How ``pipe`` holds pictures.

    Raises:
        TypeError: it has no denoiser of a supported family, no VAE, or no ``latents`` to start from.
    """
    import inspect

    target = targets_of(pipe)[0]
    known = inspect.signature(pipe.__call__).parameters
    if target.family.name not in _KINDS or getattr(pipe, "vae", None) is None:
        families = ", ".join(sorted(_KINDS))
        raise TypeError(f"{type(pipe).__name__}: a stage can't start from a picture; families: {families}")
    if "latents" not in known or "prompt" not in known:
        raise TypeError(
            f"{type(pipe).__name__} takes no prompt and latents=: stages can't start from a picture"
        )
    packed, frames = _KINDS[target.family.name]
    return Latents(pipe, target.family.name, packed, frames, target.family.kind == "video")
