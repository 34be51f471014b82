"""FLUX.1: flow matching on packed latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidattn.distill.config import Distillation
from vidattn.distill.tasks import Batch, Conditions, call_options, draw_noise, draw_sigmas, flow


class FluxTask:
    """A FluxPipeline's transformer."""

    def __init__(self, pipe: Any, config: Distillation) -> None:
        self.pipe, self.config, self.model = pipe, config, pipe.transformer
        step = 2 * pipe.vae_scale_factor
        if config.height % step or config.width % step:
            raise ValueError(
                f"height={config.height}, width={config.width}: must be multiples of {step} for this model"
            )
        self.grid = config.height // step, config.width // step

    def conditions(self, prompts: list[str]) -> Conditions:
        """T5 tokens and CLIP's pooled vector."""
        options = call_options(self.config.call, ("max_sequence_length",))
        words, pooled, _ = self.pipe.encode_prompt(
            prompts, None, device=self.pipe._execution_device, **options
        )
        return {"words": words, "pooled": pooled}

    def latents(self, pictures: Tensor) -> Tensor:
        """(B, tokens, channels)."""
        vae = self.pipe.vae
        mean = vae.encode(pictures).latent_dist.mode()
        mean = (mean - vae.config.shift_factor) * vae.config.scaling_factor
        return self.pipe._pack_latents(mean, *mean.shape)

    def batch(self, latents: Tensor, conditions: Conditions, generator: torch.Generator) -> Batch:
        """Straight-line flow; guided models get the guidance of the call (3.5 if it says none)."""
        count = len(latents)
        noise = draw_noise(latents.shape, latents, generator)
        sigmas = draw_sigmas(count, self.config.times, generator).to(latents)
        noisy, target = flow(latents, sigmas, noise)
        arguments = {
            "hidden_states": noisy,
            "timestep": sigmas,
            "encoder_hidden_states": conditions["words"],
            "pooled_projections": conditions["pooled"],
            "txt_ids": torch.zeros(conditions["words"].shape[1], 3).to(latents),
            "img_ids": self.pipe._prepare_latent_image_ids(count, *self.grid, latents.device, latents.dtype),
        }
        if self.model.config.guidance_embeds:
            scale = float(self.config.call.get("guidance_scale", 3.5))
            arguments["guidance"] = torch.full((count,), scale).to(latents)
        return Batch(arguments, target)
