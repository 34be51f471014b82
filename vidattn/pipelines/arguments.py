"""What the functions here check and note before they run anything."""

from __future__ import annotations

import inspect
from typing import Any

import vidattn
from vidattn.patches.targets import targets_of
from vidattn.pipelines.checkpoint import describe, digest_of
from vidattn.pipelines.scheduling import GUIDANCE

FLOW_STRENGTH = (0.6, 0.3)
NOISE_STRENGTH = (0.4, 0.1)
"""Strength of the first and of the fourth refining stage: LinFusion's .4 .3 .2 .1 for models that predict
noise, and more for flow matching, whose strength counts steps of a shifted schedule."""


def check_strengths(pipe: Any, strength: Any, count: int) -> list[float]:
    """One strength for each stage after the first.

    Raises:
        ValueError: out of range, or too few or too many.
    """
    if isinstance(strength, str) and strength == "auto":
        flow = "Flow" in type(pipe.scheduler).__name__ or pipe.scheduler.config.get("use_flow_sigmas", False)
        first, fourth = FLOW_STRENGTH if flow else NOISE_STRENGTH
        return [round(max(fourth, first - (first - fourth) * i / 3), 6) for i in range(count)]
    given = list(strength) if isinstance(strength, (list, tuple)) else [strength] * count
    fine = all(isinstance(s, (int, float)) and not isinstance(s, bool) and 0 < s <= 1 for s in given)
    if len(given) != count or not fine:
        raise ValueError(f"strength={strength!r}: in (0, 1], one number or one for each of {count} stages")
    return [float(s) for s in given]


def check_guidance(guidance: Any, weight: Any) -> None:
    if guidance is not None and guidance not in GUIDANCE:
        raise ValueError(f'guidance={guidance!r}: "latent", "frequency" or None')
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
        raise ValueError(f"guidance_weight={weight!r}: a number, 0 or more")


_OURS = ("height", "width", "latents", "generator", "output_type", "return_dict", "sigmas", "timesteps")


def checked_call(pipe: Any, call: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments of the pipeline's call that stages do not set themselves.

    Raises:
        TypeError: arguments that it does not take, or that stages set.
    """
    known = inspect.signature(pipe.__call__).parameters
    fixed = (*_OURS, "num_inference_steps", "num_images_per_prompt") if name == "stage_options" else _OURS
    for key in call:
        if key in fixed:
            raise TypeError(f"{name}: {key} is set for each stage, and cannot be given")
        if key not in known:
            raise TypeError(f"{name}: {type(pipe).__name__} takes no {key!r}")
    if "use_resolution_binning" in known and name == "call":
        call = {"use_resolution_binning": False, **call}
    return call


def checked_seeds(seed: Any, call: dict[str, Any]) -> list[int]:
    """The seeds as a list.

    Raises:
        ValueError: not one for each picture.
        TypeError: not integers.
    """
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    if not seeds or not all(type(s) is int for s in seeds):
        raise TypeError(f"seed={seed!r}: an integer, or one for each picture")
    prompts = len(call["prompt"]) if isinstance(call["prompt"], (list, tuple)) else 1
    batch = prompts * int(call.get("num_images_per_prompt") or call.get("num_videos_per_prompt") or 1)
    if isinstance(seed, (list, tuple)) and len(seeds) != batch:
        raise ValueError(f"seed={seed!r}: {len(seeds)} seeds for {batch} pictures")
    return seeds


def about(pipe: Any) -> dict[str, Any]:
    """Which software and which weights make the pictures."""
    weights = []
    for target in targets_of(pipe):
        tensors = [p for p in target.model.parameters() if not p.is_meta]
        weights += [p.detach().flatten()[:256] for p in (tensors[:1] + tensors[-1:])]
    scheduler = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    return {
        "software": f"vidattn {vidattn.__version__}",
        "pipeline": type(pipe).__name__,
        "model": str(pipe.config.get("_name_or_path") or ""),
        "weights": digest_of(weights),
        "scheduler": {"class": type(pipe.scheduler).__name__, **describe(scheduler)},
    }


def describe_call(call: dict[str, Any]) -> Any:
    """The arguments of a pipeline's call that decide the result, as JSON."""
    return describe({k: v for k, v in call.items() if not k.startswith("callback")})
