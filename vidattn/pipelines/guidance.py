"""Keeping a large picture close to the small one it grew from, while it is being denoised.

All is said about the predicted clean latents x0, which every scheduler's model output stands for: for flow
matching ``x0 = x - sigma v``, for noise prediction ``x0 = (x - sigma e) / alpha``, for v-prediction
``x0 = alpha x - sigma v``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Schedulers whose samples are x0 + sigma * noise; those of the others are alpha * x0 + sigma * noise.
_UNSCALED = ("EulerDiscrete", "EulerAncestral", "HeunDiscrete", "LMSDiscrete", "KDPM2", "EDMEuler")


@dataclass(frozen=True)
class Levels:
    """How much picture and how much noise a sample holds, and what the model predicts.

    Args:
        alpha: factor of the picture.
        sigma: factor of the noise.
        prediction: "flow", "epsilon", "v_prediction" or "sample".
    """

    alpha: float
    sigma: float
    prediction: str

    def clean(self, output: Tensor, sample: Tensor) -> Tensor:
        """The picture that the model's output stands for."""
        if self.prediction == "flow":
            return sample - self.sigma * output
        if self.prediction == "epsilon":
            return (sample - self.sigma * output) / self.alpha
        if self.prediction == "v_prediction":
            norm = math.hypot(self.alpha, self.sigma)
            return (self.alpha / norm * sample - self.sigma * output) / norm
        return output

    def output(self, clean: Tensor, sample: Tensor) -> Tensor:
        """The model's output that stands for a picture."""
        if self.prediction == "flow":
            return (sample - clean) / self.sigma
        if self.prediction == "epsilon":
            return (sample - self.alpha * clean) / self.sigma
        if self.prediction == "v_prediction":
            norm = math.hypot(self.alpha, self.sigma)
            return (self.alpha / norm * sample - norm * clean) / self.sigma
        return clean


def levels(scheduler: Any, timestep: Any) -> Levels:
    """The levels of the step that ``scheduler`` is about to take.

    Raises:
        ValueError: a scheduler of another kind.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    sigmas, prediction = getattr(scheduler, "sigmas", None), config.get("prediction_type", "flow_prediction")
    if prediction == "flow_prediction" or config.get("use_flow_sigmas", False):
        if sigmas is None:
            raise ValueError(f"guidance: {kind} does not tell its noise levels; use guidance=None")
        sigma = float(sigmas[_index(scheduler, timestep)])
        return Levels(1 - sigma, sigma, "flow" if prediction == "flow_prediction" else prediction)
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"guidance: {kind} predicts {prediction!r}, which is unknown; use guidance=None")
    if sigmas is not None and kind.startswith(_UNSCALED):
        return Levels(1.0, float(sigmas[_index(scheduler, timestep)]), prediction)
    if sigmas is not None:
        sigma = float(sigmas[_index(scheduler, timestep)])
        return Levels(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma), prediction)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"guidance: {kind} does not tell its noise levels; use guidance=None")
    kept = float(scheduler.alphas_cumprod[int(timestep)])
    return Levels(math.sqrt(kept), math.sqrt(1 - kept), prediction)


def _index(scheduler: Any, timestep: Any) -> int:
    found = scheduler.step_index
    if found is None:
        found = scheduler.begin_index
    if found is None:
        found = int((scheduler.timesteps - timestep).abs().argmin())
    return int(found)


def low_pass(latents: Tensor, factor: float) -> Tensor:
    """The part of latents that a picture ``factor`` times smaller can hold: resized there and back.

    Args:
        latents: (batch, channels, [frames,] height, width).
        factor: of the sides; 1 keeps everything.
    """
    if factor <= 1:
        return latents
    height, width = latents.shape[-2:]
    small = max(1, round(height / factor)), max(1, round(width / factor))
    return resize(resize(latents.float(), small), (height, width)).to(latents.dtype)


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, without aliasing, over the last two axes."""
    flat = values.reshape(-1, 1, *values.shape[-2:])
    options: dict[str, Any] = {"mode": "bicubic", "antialias": True, "align_corners": False}
    made = torch.nn.functional.interpolate(flat, size=size, **options)
    return made.reshape(*values.shape[:-2], *size)


def cosine(timestep: float, training_steps: int) -> float:
    """1 at pure noise, 0 at the end: the weight that LinFusion, DemoFusion and I-Max give their reference."""
    return (1 + math.cos(math.pi * (training_steps - timestep) / training_steps)) / 2
