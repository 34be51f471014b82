"""Wan: flow matching on video latents, with clips that the teacher makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidattn.distill.config import Distillation
from vidattn.distill.tasks import Batch, Conditions, call_options, draw_noise, draw_sigmas, flow


class WanTask:
    """The transformer of a text-to-video WanPipeline (its first one, where Wan 2.2 has two)."""

    def __init__(self, pipe: Any, config: Distillation) -> None:
        self.pipe, self.config, self.model = pipe, config, pipe.transformer

    def conditions(self, prompts: list[str]) -> Conditions:
        """UMT5's tokens."""
        options = call_options(self.config.call, ("max_sequence_length",))
        words, _ = self.pipe.encode_prompt(prompts, do_classifier_free_guidance=False, **options)
        return {"words": words}

    def latents(self, pictures: Tensor) -> Tensor:
        raise ValueError("images: video models learn from clips that the teacher makes; give prompts")

    def batch(self, latents: Tensor, conditions: Conditions, generator: torch.Generator) -> Batch:
        """Straight-line flow; the transformer's timesteps go to 1000."""
        noise = draw_noise(latents.shape, latents, generator)
        sigmas = draw_sigmas(len(latents), self.config.times, generator).to(latents)
        noisy, target = flow(latents, sigmas, noise)
        arguments = {
            "hidden_states": noisy,
            "timestep": 1000 * sigmas,
            "encoder_hidden_states": conditions["words"],
        }
        return Batch(arguments, target)
