"""ShotAdapter's shot-wise prompts (arXiv 2505.07652): one clip of several shots, each with its own prompt.

All frames see each other, which keeps people and places the same; a shot's text sees and is seen by the
frames of that shot only. The text refiner runs on each prompt alone. This is the part that needs no training:
the paper's transition token and fine-tuning, for which nothing was released, make the cuts sharp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidattn.patches.api import patched
from vidattn.patches.targets import targets_of
from vidattn.patterns import Segments
from vidattn.pipelines.arguments import about, describe_call
from vidattn.pipelines.refiner import refined_alone
from vidattn.pipelines.sizes import check_frames, check_size, frame_step, size_step
from vidattn.pipelines.stages import Stage, pictures_of
from vidattn.pipelines.upscale import Upscaled


def multi_shot_video(
    pipe: Any,
    prompts: Sequence[str],
    shots: Sequence[int],
    height: int = 720,
    width: int = 1280,
    *,
    seed: int = 0,
    patch_options: dict[str, Any] | None = None,
    **call: Any,
) -> Upscaled:
    """One clip of several shots, each with its own prompt (ShotAdapter, arXiv 2505.07652).

    For HunyuanVideo, whose text and frames attend jointly; a LoRA that was trained for it is loaded as any
    other, ``pipe.load_lora_weights(path)``, before the call.

    Args:
        pipe: a ``HunyuanVideoPipeline``, on its device.
        prompts: one for each shot.
        shots: frames of each shot. The first is 1 more than a multiple of 4, the others multiples of 4: a
            latent frame belongs to one shot.
        height: pixels, a multiple of 16.
        width: pixels, a multiple of 16.
        seed: of the noise.
        patch_options: other arguments of ``vidattn.patch``.
        **call: other arguments of the pipeline's call, as ``num_inference_steps``.

    Returns:
        The clip, a record of the run, and all settings.

    Raises:
        ValueError: frames or sizes that the model cannot make exactly, or not a prompt for each shot.
        TypeError: another pipeline.

    Example:
        >>> made = multi_shot_video(hunyuan, ["a fox wakes up", "the fox runs"], [33, 32])
    """
    if type(targets_of(pipe)[0].model).__name__ != "HunyuanVideoTransformer3DModel":
        raise TypeError(f"{type(pipe).__name__}: multi_shot_video drives a HunyuanVideoPipeline")
    latent_frames = _latent_frames(pipe, prompts, shots)
    check_size((height, width), size_step(pipe), "size")
    template: dict[str, Any] = {
        k: call.pop(k) for k in ("prompt_template", "max_sequence_length") if k in call
    }
    texts, pooled = _encoded(pipe, prompts, template)
    lengths = [text.shape[1] for text in texts]
    given: dict[str, Any] = {
        "prompt_embeds": torch.cat(texts, 1),
        "pooled_prompt_embeds": torch.stack(pooled).mean(0),
        "prompt_attention_mask": torch.ones(1, sum(lengths), device=texts[0].device, dtype=torch.long),
    }
    given |= {"height": height, "width": width, "num_frames": sum(shots), "output_type": "pt", **call}
    pattern = Segments.shots(latent_frames, lengths, transitions=False)
    options = {"min_tokens": 0, **(patch_options or {})}  # it is for what they see, not for speed
    with patched(pipe, pattern, **options) as handle, refined_alone(pipe, lengths):
        frames = pipe(**given, generator=torch.Generator("cpu").manual_seed(seed)).frames
        report = handle.report()
    stage = Stage(0, height, width, 1.0, density=report.density, report=str(report))
    settings = {**about(pipe), "prompts": list(prompts), "shots": list(shots), "seed": seed}
    settings |= {"height": height, "width": width, "call": describe_call({**call, **template})}
    return Upscaled(pictures_of(frames), [stage], settings)


def _latent_frames(pipe: Any, prompts: Sequence[str], shots: Sequence[int]) -> list[int]:
    step = frame_step(pipe)
    if isinstance(prompts, str) or len(prompts) != len(shots) or not shots:
        raise ValueError(f"shots={list(shots)}: frames of each of the {len(prompts)} prompts' shots")
    check_frames(shots[0], step, "shots[0]")
    for number, frames in enumerate(shots[1:], 1):
        if type(frames) is not int or frames < step or frames % step:
            raise ValueError(f"shots[{number}]={frames!r}: must be a multiple of {step} for this model")
    return [(shots[0] - 1) // step + 1, *(frames // step for frames in shots[1:])]


def _encoded(pipe: Any, prompts: Sequence[str], options: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Each prompt's embeddings (1, tokens, channels) without padding, and the pooled ones."""
    texts, pooled = [], []
    with torch.no_grad():
        for prompt in prompts:
            text, whole, mask = pipe.encode_prompt(prompt, device=pipe._execution_device, **options)
            texts.append(text[:, : int(mask.sum())])
            pooled.append(whole)
    return texts, pooled
