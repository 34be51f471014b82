"""Stable Diffusion 1.5, 2.1 and XL: noise or velocity prediction, as the scheduler says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidattn.distill.config import Distillation
from vidattn.distill.tasks import Batch, Conditions, draw_noise


class UNetTask:
    """The UNet of a StableDiffusionPipeline or StableDiffusionXLPipeline.

    Noise is added by a DDPM scheduler with the pipeline's settings: samplers such as Euler keep the latents
    in another scale, but the UNet sees the same.
    """

    def __init__(self, pipe: Any, config: Distillation) -> None:
        from diffusers import DDPMScheduler

        self.pipe, self.config, self.model = pipe, config, pipe.unet
        step = pipe.vae_scale_factor
        if config.height % step or config.width % step:
            raise ValueError(
                f"height={config.height}, width={config.width}: must be multiples of {step} for this model"
            )
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.kind = self.scheduler.config.prediction_type
        if self.kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type={self.kind!r}: must be epsilon or v_prediction")
        self.xl = getattr(pipe, "text_encoder_2", None) is not None

    def conditions(self, prompts: list[str]) -> Conditions:
        """CLIP's tokens; for XL the pooled vector too."""
        device = self.pipe._execution_device
        if not self.xl:
            return {"words": self.pipe.encode_prompt(prompts, device, 1, False)[0]}
        words, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=device, do_classifier_free_guidance=False
        )
        return {"words": words, "pooled": pooled}

    def latents(self, pictures: Tensor) -> Tensor:
        """(B, channels, height, width)."""
        vae = self.pipe.vae
        return vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor

    def batch(self, latents: Tensor, conditions: Conditions, generator: torch.Generator) -> Batch:
        """Noise at times drawn evenly."""
        count, last = len(latents), self.scheduler.config.num_train_timesteps
        noise = draw_noise(latents.shape, latents, generator)
        times = torch.randint(0, last, (count,), generator=generator).to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, times)
        velocity = self.kind == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, times) if velocity else noise
        arguments: dict[str, Any] = {
            "sample": noisy,
            "timestep": times,
            "encoder_hidden_states": conditions["words"],
        }
        if self.xl:
            size = (self.config.height, self.config.width)
            ids = torch.tensor([[*size, 0, 0, *size]] * count).to(latents)
            arguments["added_cond_kwargs"] = {"text_embeds": conditions["pooled"], "time_ids": ids}
        return Batch(arguments, target)
