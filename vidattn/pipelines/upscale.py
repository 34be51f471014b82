"""Pictures far beyond the size that a model was trained at, in stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vidattn.patches.api import patched
from vidattn.patches.targets import targets_of
from vidattn.patterns import SlidingWindow
from vidattn.pipelines.arguments import (
    about,
    check_guidance,
    check_strengths,
    checked_call,
    checked_seeds,
    describe_call,
)
from vidattn.pipelines.checkpoint import Checkpoint, describe
from vidattn.pipelines.extrapolation import ntk_scaled, proportional_scale, query_modules, rope_modules
from vidattn.pipelines.latents import latents_of
from vidattn.pipelines.memory import budget_for
from vidattn.pipelines.scheduling import check_shift
from vidattn.pipelines.sizes import Size, as_size, check_size, default_base, size_step, stage_sizes
from vidattn.pipelines.stages import Around, Runner, Stage, as_images

NTK = 10.0
"""Factor of the rotary base that CLEAR and I-Max use on FLUX."""


@dataclass
class Upscaled:
    """What ``upscale_generate`` made.

    Args:
        frames: (batch, frames, height, width, 3), uint8, on the CPU; pictures have one frame.
        stages: a record of every stage, the first one first.
        settings: everything that makes the pictures again.
    """

    frames: Tensor
    stages: list[Stage]
    settings: dict[str, Any] = field(repr=False)

    @property
    def images(self) -> list[Any]:
        """The pictures as PIL images; of clips, a list of frames each."""
        return as_images(self.frames)


def upscale_generate(
    pipe: Any,
    prompt: str | list[str],
    size: int | Size = (4096, 4096),
    base: int | Size | None = None,
    stages: Any = "auto",
    strength: Any = "auto",
    pattern: Any = "auto",
    guidance: str | None = "frequency",
    *,
    guidance_weight: float = 1.0,
    ntk: float | str | None = "auto",
    proportional: bool | str = "auto",
    time_shift: float | None = None,
    seed: int | list[int] = 0,
    patch_options: dict[str, Any] | None = None,
    stage_options: dict[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    max_memory: int | str | None = None,
    callback: Callable[[Stage, int, int, list[Any]], Any] | None = None,
    progress: bool = True,
    **call: Any,
) -> Upscaled:
    """Generate at the trained size, then enlarge and refine the whole picture stage by stage.

    Each stage enlarges the picture before, adds noise, and denoises it with sparse attention (SDEdit).
    Guidance keeps it from inventing a second subject: LinFusion's 16K chain (arXiv 2409.02097), CLEAR's
    recipe (arXiv 2412.16112) and I-Max's low-frequency guidance (arXiv 2410.07536) are settings of this
    function. Nothing of the pipeline's ``__call__`` is copied: a stage starts through ``latents=`` and a
    scheduler that begins later. All that is changed on the pipeline is put back, after an exception as well.

    Args:
        pipe: a text-to-image or text-to-video pipeline of diffusers, on its device.
        prompt: one, or a list.
        size: (height, width) in pixels, or one number for both.
        base: size of the first stage; None is the trained size with the proportions of ``size``.
        stages: "auto" doubles the sides until ``size``; a number of stages after the first; or their sizes.
        strength: share of the steps that each stage after the first runs, as ``strength`` of diffusers'
            image-to-image pipelines: "auto", a number, or one for each stage.
        pattern: for ``vidattn.patch`` in the stages after the first. "auto" gives every token the window that
            it had in the first stage (``SlidingWindow``); None leaves attention as it is.
        guidance: "frequency": the low frequencies of the predicted picture are pulled to those of the smaller
            one; "latent": the sample itself is pulled to the smaller picture with noise; or None.
        guidance_weight: factor of the guidance, whose weight falls as a cosine from 1 at pure noise to 0.
        ntk: factor of the rotary base after the first stage; "auto" is 10 where the model computes its
            positions from it, else None.
        proportional: softmax scale times sqrt(log N / log N of the first stage); "auto": wherever the model
            works on one grid of tokens.
        time_shift: shift of the noise schedule after the first stage; None keeps that of the first (a
            pipeline that shifts by the number of tokens would leave no steps for detail).
        seed: of the noise; a list gives one for each picture.
        patch_options: other arguments of ``vidattn.patch``, as ``{"dense_steps": 2, "min_tokens": 0}``.
        stage_options: arguments of the pipeline's call that differ after the first stage.
        checkpoint: folder for finished stages; a run that was killed goes on from the last one, and gives the
            same picture bit for bit.
        max_memory: bytes, or text as "20GiB": the VAE works in tiles where it would need more (the same
            pictures for ``AutoencoderKL``), and a denoiser that cannot fit is refused before anything runs.
        callback: called behind each stage with (stage, index, number of stages, pictures); pictures of a
            resumed stage are given as well.
        progress: show a bar for each stage.
        **call: other arguments of the pipeline's call, as ``num_inference_steps``, ``guidance_scale``,
            ``negative_prompt`` or ``num_images_per_prompt``.

    Returns:
        The pictures, a record of every stage, and all settings.

    Raises:
        ValueError: sizes that the model cannot make exactly, values out of range, another run's checkpoint.
        TypeError: a pipeline that cannot start from a picture, arguments that it does not take, wrong kinds.

    Example:
        >>> made = upscale_generate(pipe, "a red fox", size=4096, num_inference_steps=28)
        >>> made.images[0].save("fox.png")
    """
    latents = latents_of(pipe)
    options = Options(pipe, ntk, proportional, pattern, dict(patch_options or {}))
    sizes = _sizes(pipe, size, base, stages)
    strengths = check_strengths(pipe, strength, len(sizes) - 1)
    check_guidance(guidance, guidance_weight)
    check_shift(pipe.scheduler, time_shift)
    call = checked_call(pipe, {"prompt": prompt, **call}, "call")
    stage_call = checked_call(pipe, dict(stage_options or {}), "stage_options")
    seeds = checked_seeds(seed, call)
    budget = budget_for(pipe, max_memory, sizes[-1], call)
    settings = {
        **about(pipe),
        "call": describe_call(call),
        "stage_options": describe(stage_call),
        "sizes": sizes,
        "strengths": strengths,
        "seed": seed,
        **{"pattern": describe(pattern), "patch_options": describe(options.patch)},
        **{"guidance": guidance, "guidance_weight": guidance_weight, "time_shift": time_shift},
        **{"ntk": options.ntk, "proportional": options.proportional},
    }
    runner = Runner(
        pipe,
        latents,
        call,
        stage_call,
        sizes,
        strengths,
        seeds,
        guidance,
        guidance_weight,
        time_shift,
        options.around,
        budget,
        Checkpoint(checkpoint, settings),
        callback,
        progress,
    )
    return Upscaled(runner.run(), runner.done, settings)


@dataclass
class Options:
    """What surrounds the call of a stage after the first: patch, positions, softmax scale.

    Args:
        pipe: the pipeline.
        ntk: as given; then the factor or None.
        proportional: as given; then whether.
        pattern: as given.
        patch: other arguments of ``vidattn.patch``.

    Raises:
        ValueError: an option that would do nothing on this model.
        TypeError: a value of a wrong kind.
    """

    pipe: Any
    ntk: Any
    proportional: Any
    pattern: Any
    patch: dict[str, Any]

    def __post_init__(self) -> None:
        self.targets = targets_of(self.pipe)
        name = type(self.pipe).__name__
        if self.ntk == "auto":
            self.ntk = NTK if rope_modules(self.pipe) else None
        elif self.ntk is not None:
            if isinstance(self.ntk, bool) or not isinstance(self.ntk, (int, float)) or self.ntk <= 0:
                raise ValueError(f'ntk={self.ntk!r}: a positive factor, "auto" or None')
            if not rope_modules(self.pipe):
                raise ValueError(f"ntk={self.ntk}: the positions of {name} are not made from a rotary base")
        family, model = self.targets[0].family, self.targets[0].model
        layer = next(iter(family.layers(model)), None)
        fits = family.name != "unet" and layer is not None and bool(query_modules(layer.module))
        if self.proportional == "auto":
            self.proportional = fits
        elif self.proportional is True and not fits:
            raise ValueError(
                f"proportional=True: the layers of {name} work on several grids, or fuse their queries"
            )
        elif not isinstance(self.proportional, bool):
            raise TypeError(f'proportional={self.proportional!r}: True, False or "auto"')

    @contextmanager
    def around(self, index: int, first: Stage) -> Iterator[Around]:
        """The context of a stage's call, with what its patch reported."""
        left, pattern = Around(), self.pattern
        if isinstance(pattern, str) and pattern == "auto":
            pattern = SlidingWindow(first.grid[1:]) if first.grid else "sliding"
        with ExitStack() as stack:
            handle = None
            if pattern is not None:
                handle = stack.enter_context(patched(self.pipe, pattern, **self.patch))
            stack.enter_context(ntk_scaled(self.pipe, self.ntk))
            trained = first.tokens if self.proportional and first.tokens > 1 else None
            stack.enter_context(proportional_scale(self.pipe, trained))
            yield left
            if handle is not None:
                report = handle.report()
                left.density, left.report = report.density, str(report)


def _sizes(pipe: Any, size: Any, base: Any, stages: Any) -> list[Size]:
    step = size_step(pipe)
    last = as_size(size, "size")
    check_size(last, step, "size")
    first = default_base(pipe, last) if base is None else as_size(base, "base")
    check_size(first, step, "base")
    return stage_sizes(first, last, stages, step)
