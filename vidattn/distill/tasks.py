"""What differs between models: how they are conditioned, noised and called, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidattn.distill.config import Distillation

Conditions = dict[str, Tensor]
"""Embeddings of prompts by name, batch first."""


@dataclass(frozen=True)
class Batch:
    """One forward: the model's arguments, and what the noise or flow loss wants it to predict."""

    arguments: dict[str, Any]
    target: Tensor


class Task(Protocol):
    """One kind of model. ``model`` is its denoiser."""

    model: nn.Module

    def conditions(self, prompts: list[str]) -> Conditions:
        """Embeddings of prompts."""

    def latents(self, pictures: Tensor) -> Tensor:
        """Clean latents of pictures (B, 3, H, W) in [-1, 1], as the pipeline's loop has them."""

    def batch(self, latents: Tensor, conditions: Conditions, generator: torch.Generator) -> Batch:
        """Noised latents at drawn noise levels. The generator is on the CPU, so devices agree."""


def task_of(pipe: Any, config: Distillation) -> Task:
    """The task of a pipeline.

    Raises:
        TypeError: no such task is known for it; names those that are.
    """
    from vidattn.distill.flux import FluxTask
    from vidattn.distill.unet import UNetTask
    from vidattn.distill.wan import WanTask

    known: dict[str, Callable[[Any, Distillation], Task]] = {
        "FluxTransformer2DModel": FluxTask,
        "UNet2DConditionModel": UNetTask,
        "WanTransformer3DModel": WanTask,
    }
    for component in ("unet", "transformer"):
        names = {cls.__name__ for cls in type(getattr(pipe, component, None)).__mro__}
        for name, task in known.items():
            if name in names:
                return task(pipe, config)
    raise TypeError(f"{type(pipe).__name__} cannot be distilled; models that can: {', '.join(known)}")


def draw_noise(shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise from a CPU generator, on the device and in the dtype of ``like``."""
    return torch.randn(shape, generator=generator).to(like)


def draw_sigmas(count: int, times: str, generator: torch.Generator) -> Tensor:
    """(count,) noise levels in (0, 1) for flow matching."""
    if times == "uniform":
        return torch.rand(count, generator=generator)
    return torch.randn(count, generator=generator).sigmoid()


def flow(latents: Tensor, sigmas: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Latents on the straight way to noise, and the velocity along it."""
    sigma = sigmas.to(latents).view(-1, *[1] * (latents.ndim - 1))
    return (1 - sigma) * latents + sigma * noise, noise - latents


def call_options(call: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those arguments of the pipeline's call that also shape the prompt's embedding."""
    return {name: call[name] for name in names if name in call}
