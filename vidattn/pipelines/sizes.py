"""Which sizes a pipeline can make, and the sizes of the stages on the way to a large one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vidattn.patches.targets import targets_of

Size = tuple[int, int]
"""(height, width) in pixels."""

VIDEO_BASE: Size = (480, 832)
"""What the video models without a default size of their own were trained at."""


def size_step(pipe: Any) -> int:
    """Height and width must be multiples of this: the VAE's factor times the denoiser's patch."""
    processor = getattr(pipe, "image_processor", None) or getattr(pipe, "video_processor", None)
    factor = int(processor.config.vae_scale_factor) if processor is not None else 1
    if hasattr(pipe, "_pack_latents"):  # then the processor's factor counts the patch already
        return factor
    patch = getattr(getattr(pipe, "transformer", None), "config", {}).get("patch_size", 1)
    return factor * int(patch[-1] if isinstance(patch, (list, tuple)) else patch or 1)


def frame_step(pipe: Any) -> int:
    """The number of frames must be 1 more than a multiple of this."""
    return int(getattr(pipe, "vae_scale_factor_temporal", 1))


def as_size(size: Any, name: str) -> Size:
    """(height, width) from a number or a pair.

    Raises:
        TypeError: neither.
        ValueError: not positive.
    """
    pair = (size, size) if isinstance(size, int) and not isinstance(size, bool) else size
    whole = isinstance(pair, Sequence) and len(pair) == 2 and all(type(n) is int for n in pair)
    if not whole:
        raise TypeError(f"{name}={size!r}: pixels as a number, or as a pair (height, width)")
    if min(pair) < 1:
        raise ValueError(f"{name}={size!r}: pixels must be positive")
    return int(pair[0]), int(pair[1])


def check_size(size: Size, step: int, name: str) -> None:
    """Refuse a size that the model cannot make exactly.

    Raises:
        ValueError: height or width is no multiple of ``step``; says the nearest sizes that are.
    """
    height, width = size
    if height % step or width % step:
        smaller = tuple(max(step, n // step * step) for n in size)
        larger = tuple(-(-n // step) * step for n in size)
        raise ValueError(
            f"{name}={height}x{width} (height x width): both must be multiples of {step} for this model; the"
            f" nearest are {smaller[0]}x{smaller[1]} and {larger[0]}x{larger[1]}"
        )


def check_frames(frames: int, step: int, name: str = "frames") -> None:
    """Refuse a number of frames that the VAE cannot make exactly.

    Raises:
        ValueError: it is not 1 more than a multiple of ``step``; says the nearest that are.
    """
    if type(frames) is not int or frames < 1 or (frames - 1) % step:
        near = max(0, frames - 1) // step * step + 1 if isinstance(frames, int) else 1
        raise ValueError(
            f"{name}={frames!r}: must be 1 more than a multiple of {step} for this model, as {near} or"
            f" {near + step}"
        )


def rounded(height: float, width: float, step: int) -> Size:
    """The nearest multiples of ``step``, at least one."""
    return max(1, round(height / step)) * step, max(1, round(width / step)) * step


def default_base(pipe: Any, size: Size) -> Size:
    """The size that the model was trained at, with the proportions of ``size``; never larger than it.

    Raises:
        ValueError: the pipeline does not say what it was trained at.
    """
    side = getattr(pipe, "default_sample_size", None)
    if targets_of(pipe)[0].family.kind == "video":
        area = float(VIDEO_BASE[0] * VIDEO_BASE[1])
    elif isinstance(side, int):
        area = float(side * _factor(pipe)) ** 2
    else:
        sample = getattr(getattr(pipe, "unet", None) or getattr(pipe, "transformer", None), "config", {})
        if not isinstance(sample.get("sample_size"), int):
            raise ValueError(f"base: {type(pipe).__name__} does not say at which size it was trained")
        area = float(sample["sample_size"] * _factor(pipe)) ** 2
    height, width = size
    ratio = min(1.0, math.sqrt(area / (height * width)))
    return rounded(height * ratio, width * ratio, size_step(pipe))


def _factor(pipe: Any) -> int:
    return int(getattr(pipe, "vae_scale_factor", 8))


def stage_sizes(base: Size, size: Size, stages: Any, step: int) -> list[Size]:
    """The sizes of all stages, from ``base`` to ``size``.

    Args:
        base: of the first stage, which is generated from noise.
        size: of the last.
        stages: "auto" doubles until the size is reached; a number is that many stages after the base, in
            equal ratios; a list holds the sizes after the base, and must end with ``size``.
        step: sizes are multiples of it.

    Raises:
        TypeError: ``stages`` is none of these.
        ValueError: sizes that shrink, an unknown word, or a list that does not lead to ``size``.
    """
    if base[0] > size[0] or base[1] > size[1]:
        raise ValueError(f"base={base[0]}x{base[1]} is larger than size={size[0]}x{size[1]}")
    if isinstance(stages, (list, tuple)):
        return [base, *_listed(base, size, stages, step)]
    growth = max(size[0] / base[0], size[1] / base[1])
    if stages == "auto":
        count = math.ceil(math.log2(growth) - 1e-9)
    elif type(stages) is int:
        if stages < (growth > 1):
            raise ValueError(
                f"stages={stages}: {base[0]}x{base[1]} to {size[0]}x{size[1]} takes one at least"
            )
        count = stages
    else:
        raise TypeError(f'stages={stages!r}: "auto", a number of stages, or a list of sizes')
    sizes = [base]
    for number in range(1, count):
        # doubling leaves what is over to the last stage; a number of stages shares the growth
        done = 2.0**number / growth if stages == "auto" else growth ** (number / count - 1)
        sizes.append(rounded(size[0] * done, size[1] * done, step))
    return [*sizes, size] if count else sizes


def _listed(base: Size, size: Size, stages: Sequence[Any], step: int) -> list[Size]:
    sizes = [as_size(each, "stages") for each in stages]
    for each in sizes:
        check_size(each, step, "stages")
    for smaller, larger in zip([base, *sizes], sizes, strict=False):
        if larger[0] < smaller[0] or larger[1] < smaller[1]:
            raise ValueError(f"stages={list(stages)}: sizes must not shrink, from base={base} on")
    if (not sizes and base != size) or (sizes and sizes[-1] != size):
        raise ValueError(f"stages={list(stages)}: the last must be size={size[0]}x{size[1]}")
    return sizes
