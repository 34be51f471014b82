"""DRA-Ctrl (arXiv 2505.23325): a controlled picture as the last frame of a short clip of HunyuanVideo I2V.

The first latent frame is the condition; behind it come frames of transition and the picture. A table of
segments says which of them, and which text, sees what; temporal positions jump, as in a much longer clip.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.patches.api import patched
from vidattn.patches.targets import targets_of
from vidattn.patterns import Segments
from vidattn.pipelines.arguments import about, describe_call
from vidattn.pipelines.control_adapter import adapter_loaded, condition_only
from vidattn.pipelines.refiner import refined_alone
from vidattn.pipelines.sizes import check_size, frame_step, size_step
from vidattn.pipelines.stages import Stage, pictures_of
from vidattn.pipelines.text_keys import raised_words
from vidattn.pipelines.upscale import Upscaled

_ENCODING = ("prompt_template", "max_sequence_length")
_SET = (
    "num_frames",
    "generator",
    "latents",
    "output_type",
    "return_dict",
    "num_videos_per_prompt",
    "prompt_2",
)
_UNGUIDED = "true_cfg_scale"


def image_from_video_model(
    pipe: Any,
    image: Any,
    prompt: str,
    condition_prompt: str | None = None,
    height: int = 512,
    width: int = 512,
    *,
    transitions: int = 8,
    frame_gap: int = 48,
    stronger_words: float = 0.0,
    lora: Any = None,
    seed: int = 0,
    patch_options: dict[str, Any] | None = None,
    **call: Any,
) -> Upscaled:
    """A picture controlled by another one, from an image-to-video model (DRA-Ctrl, arXiv 2505.23325).

    What needs no training is here: the frames of transition, the attention table, the temporal positions, and
    the condition's text, which the refiner sees at timestep 0. What makes the picture follow the condition in
    a task (edges, depth, subject, ...) is the adapter trained for it: without one, the model continues the
    clip. Adapters on the pipeline, loaded by ``lora`` or before the call, act on the condition and the texts
    only. The authors sample with ``FlowMatchEulerDiscreteScheduler()``, without a shift; this uses the
    pipeline's scheduler.

    Args:
        pipe: a ``HunyuanVideoImageToVideoPipeline``, on its device, whose transformer replaces tokens
            (``image_condition_type`` "token_replace", as in HunyuanVideo-I2V).
        image: the condition, a PIL image.
        prompt: of the picture.
        condition_prompt: what the condition shows; None where the task has none.
        height: pixels, a multiple of 16.
        width: pixels, a multiple of 16.
        transitions: frames between condition and picture, a multiple of 4; see :func:`transition_frames`.
        frame_gap: frames from one latent frame to the next in the temporal positions, a multiple of 4; 4 is
            that of an ordinary clip.
        stronger_words: for the generated frames, this times their mean size is added to the keys of the
            target's words, which are the tokens of ``prompt`` behind those of the image. The authors use 0.6
            with the adapter for subjects. Attention layers then run twice.
        lora: a trained adapter, as ``pipe.load_lora_weights`` takes it, for this call only.
        seed: of the noise.
        patch_options: other arguments of ``vidattn.patch``.
        **call: other arguments of the pipeline's call, as ``num_inference_steps``.

    Returns:
        The picture, a record of the run, and all settings.

    Raises:
        ValueError: sizes or frames that the model cannot make exactly, another image conditioning, guidance
            by a negative prompt, or an adapter that does not fit.
        TypeError: another pipeline, no picture, a prompt that is no text, or arguments that cannot be given.

    Example:
        >>> made = image_from_video_model(hunyuan_i2v, edges, "a cat-shaped loaf", lora="canny.safetensors")
    """
    _check_pipe(pipe)
    _check_inputs(pipe, image, prompt, condition_prompt, call)
    check_size((height, width), size_step(pipe), "size")
    step = frame_step(pipe)
    _check_multiple("transitions", transitions, step, 0)
    _check_multiple("frame_gap", frame_gap, step, step)
    if isinstance(stronger_words, bool) or not isinstance(stronger_words, (int, float)):
        raise TypeError(f"stronger_words={stronger_words!r}: must be a number")
    generated, frame = transitions // step + 1, height * width // size_step(pipe) ** 2
    settings = {**about(pipe), "prompt": prompt, "condition_prompt": condition_prompt, "seed": seed}
    settings |= {"height": height, "width": width, "transitions": transitions, "frame_gap": frame_gap}
    settings |= {"stronger_words": stronger_words}
    settings |= {"lora": None if lora is None else "weights" if isinstance(lora, dict) else str(lora)}
    settings |= {"call": describe_call(call)}
    given: dict[str, Any] = {"height": height, "width": width, "num_frames": 1 + step * generated}
    embedded, lengths = _encoded(pipe, image, [prompt, condition_prompt], call)
    given |= {k: v for k, v in call.items() if k not in _ENCODING} | embedded
    words = range(_image_tokens(pipe, call), lengths[0])
    pattern = Segments.control(sum(lengths[1:]), lengths[0], frames=generated)
    options = {"min_tokens": 0, **(patch_options or {})}  # it is for what they see, not for speed
    generator = torch.Generator("cpu").manual_seed(seed)
    with (
        adapter_loaded(pipe, lora),
        condition_only(pipe.transformer, frame, generated),
        patched(pipe, pattern, **options) as handle,
        refined_alone(pipe, lengths, clean=(1,)),
        raised_words(pipe, words, sum(lengths), stronger_words),
        frames_apart(pipe.transformer.rope, frame_gap // step),
    ):
        latents = pipe(image=image, **given, generator=generator, output_type="latent").frames
        report = handle.report()
    stage = Stage(0, height, width, 1.0, density=report.density, report=str(report))
    return Upscaled(_last_picture(pipe, latents), [stage], settings)


def transition_frames(condition: Tensor, target: Tensor, count: int = 8, gamma: float = 2.2) -> Tensor:
    """DRA-Ctrl's frames between two pictures, which its training clips have between condition and target.

    Light is mixed, not pixel values: ``((1 - b) condition^gamma + b target^gamma)^(1 / gamma)`` with
    ``b = a^2 (3 - 2 a)``, ``a`` going in equal steps from the condition, 0, to the target, 1, both left out.

    Args:
        condition: (..., channels, height, width) in [0, 1].
        target: of the same shape.
        count: frames; the paper finds 8 the best.
        gamma: of the display.

    Returns:
        (..., count, channels, height, width).

    Raises:
        ValueError: other shapes, values outside [0, 1], or a count or gamma that is not positive.
    """
    if condition.shape != target.shape or condition.ndim < 3:
        raise ValueError(
            f"condition {tuple(condition.shape)} and target {tuple(target.shape)}: must have the same shape,"
            " (..., channels, height, width)"
        )
    for name, picture in (("condition", condition), ("target", target)):
        if not bool(((picture >= 0) & (picture <= 1)).all()):
            raise ValueError(f"{name}: must be in [0, 1], it goes from {picture.min()} to {picture.max()}")
    if type(count) is not int or count < 1:
        raise ValueError(f"count={count!r}: must be an integer of at least 1")
    if not gamma > 0:
        raise ValueError(f"gamma={gamma!r}: must be positive")
    way = torch.arange(1, count + 1, dtype=condition.dtype, device=condition.device) / (count + 1)
    share = (way**2 * (3 - 2 * way)).view(-1, 1, 1, 1)
    first, last = (picture.unsqueeze(-4) ** gamma for picture in (condition, target))
    return ((1 - share) * first + share * last) ** (1 / gamma)


@contextmanager
def frames_apart(rope: nn.Module, gap: int) -> Iterator[None]:
    """Temporal positions times ``gap``, for the length of a ``with`` block.

    They are those of a clip with all frames in between, which are then left out.
    """

    def longer(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        batch, channels, frames, height, width = args[0].shape
        count = (frames // module.patch_size_t - 1) * gap + 1
        shape = (batch, channels, count * module.patch_size_t, height, width)
        return (args[0].new_empty(1).expand(shape),)  # only its shape is asked for

    def kept(module: Any, args: tuple[Tensor], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        count = args[0].shape[2] // module.patch_size_t
        return tuple(table.unflatten(0, (count, -1))[::gap].flatten(0, 1) for table in output)

    with ExitStack() as stack:
        stack.callback(rope.register_forward_pre_hook(longer).remove)
        stack.callback(rope.register_forward_hook(kept).remove)
        yield


# ------------------------------------------------------------------ checks
def _check_pipe(pipe: Any) -> None:
    model = targets_of(pipe)[0].model
    fits = "image" in inspect.signature(pipe.__call__).parameters
    if type(model).__name__ != "HunyuanVideoTransformer3DModel" or not fits:
        raise TypeError(
            f"{type(pipe).__name__}: image_from_video_model drives a HunyuanVideoImageToVideoPipeline"
        )
    kind = getattr(model.config, "image_condition_type", None)
    if kind != "token_replace":
        raise ValueError(
            f'image_condition_type={kind!r}: the transformer must be one with "token_replace", which keeps'
            " the condition as its first latent frame"
        )


def _check_inputs(pipe: Any, image: Any, prompt: Any, condition_prompt: Any, call: dict[str, Any]) -> None:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(f"image: must be a PIL image, not {type(image).__name__}")
    for name, text in (("prompt", prompt), ("condition_prompt", condition_prompt)):
        if not isinstance(text, str) and not (text is None and name == "condition_prompt"):
            raise TypeError(f"{name}={text!r}: must be one text; one picture is made at a time")
    known = inspect.signature(pipe.__call__).parameters
    for key in call:
        if key not in known:
            raise TypeError(f"{type(pipe).__name__} takes no {key!r}")
        if key in _SET or "embeds" in key or key.endswith("_mask"):
            raise TypeError(f"{key} is set by image_from_video_model, and cannot be given")
        if "negative" in key or (key == _UNGUIDED and call[key] != 1):
            raise ValueError(
                f"{key}={call[key]!r}: no guidance by a negative prompt, the table is for one prompt"
            )


def _check_multiple(name: str, value: Any, step: int, least: int) -> None:
    if type(value) is not int or value < least or value % step:
        raise ValueError(f"{name}={value!r}: must be a multiple of {step}, at least {least}")


# ------------------------------------------------------------------ before and after the call
def _encoded(
    pipe: Any, image: Any, prompts: list[str | None], call: dict[str, Any]
) -> tuple[dict[str, Any], list[int]]:
    """The texts without padding, one behind the other, as the call takes them, and the tokens of each."""
    options = {k: call[k] for k in _ENCODING if k in call}
    options |= {"image_embed_interleave": _interleave(call)}
    texts, pooled = [], []
    with torch.no_grad():
        for prompt in prompts:
            if prompt is not None:
                text, whole, mask = pipe.encode_prompt(
                    image=image, prompt=prompt, device=pipe._execution_device, **options
                )
                texts.append(text[:, : int(mask.sum())])
                pooled.append(whole)
    lengths = [text.shape[1] for text in texts]
    mask = torch.ones(1, sum(lengths), device=texts[0].device, dtype=torch.long)
    embedded = {"prompt_embeds": torch.cat(texts, 1), "pooled_prompt_embeds": pooled[0]}
    return {**embedded, "prompt_attention_mask": mask}, lengths


def _interleave(call: dict[str, Any]) -> int:
    """Of the image's tokens in the text, every so many are kept; 4 is the pipeline's for token_replace."""
    return int(call.get("image_embed_interleave") or 4)


def _image_tokens(pipe: Any, call: dict[str, Any]) -> int:
    """Tokens of the image in front of the words: 144 of 576."""
    default = inspect.signature(pipe.__call__).parameters["prompt_template"].default
    count, step = (call.get("prompt_template") or default).get("image_emb_len", 576), _interleave(call)
    return -(-count // step) if 0 < step < 6 else int(count)


def _last_picture(pipe: Any, latents: Tensor) -> Tensor:
    """The last latent frame, decoded on its own: one frame."""
    with torch.no_grad():
        values = latents[:, :, -1:].to(pipe.vae.dtype) / pipe.vae_scaling_factor
        video = pipe.vae.decode(values, return_dict=False)[0]
    return pictures_of(pipe.video_processor.postprocess_video(video, output_type="pt"))
