"""Running a pipeline stage by stage: from noise at the first size, from the picture before at the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidattn.pipelines.checkpoint import Checkpoint
from vidattn.pipelines.extrapolation import watched
from vidattn.pipelines.guidance import resize
from vidattn.pipelines.latents import Latents
from vidattn.pipelines.memory import vae_within
from vidattn.pipelines.scheduling import (
    Guide,
    Schedule,
    noised,
    recorded,
    scheduler_replaced,
    staged,
    steps_run,
)
from vidattn.pipelines.sizes import Size
from vidattn.pipelines.vae import Seams


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        index: 0 is generated from noise.
        height: pixels.
        width: pixels.
        strength: share of the steps that run.
        steps: denoising steps that ran; 0 until the stage is finished.
        seconds: of the whole stage, VAE included.
        grid: (T, H, W) in tokens, where the model works on one grid.
        tokens: text included; 0 where the model works on several grids.
        density: share of the pairs that its attention computed; None without a patch.
        report: what ran in every layer, as text; "" without a patch.
        seams: how well the VAE's tiles fitted, for each call that was tiled; empty from a checkpoint.
        resumed: whether it was read from a checkpoint.
    """

    index: int
    height: int
    width: int
    strength: float
    steps: int = 0
    seconds: float = 0.0
    grid: tuple[int, int, int] | None = None
    tokens: int = 0
    density: float | None = None
    report: str = ""
    seams: tuple[Seams, ...] = ()
    resumed: bool = False


@dataclass
class Around:
    """What a stage may leave about itself: filled inside the context that surrounds its call."""

    density: float | None = None
    report: str = ""


@dataclass
class Runner:
    """All that the stages of one run share.

    Args:
        pipe: the pipeline.
        latents: how it holds pictures.
        call: arguments of its call.
        stage_call: arguments that differ after the first stage.
        sizes: of all stages.
        strengths: of the stages after the first.
        seeds: one, or one for each picture.
        guidance: "latent", "frequency" or None.
        guidance_weight: its factor.
        shift: time shift of the stages after the first, or None.
        around: gives the context of a stage's call: patches and the like, by the first stage's record.
        budget: bytes for the VAE's activations, or None.
        checkpoint: finished stages.
        callback: called behind each stage.
        progress: show bars.
    """

    pipe: Any
    latents: Latents
    call: dict[str, Any]
    stage_call: dict[str, Any]
    sizes: list[Size]
    strengths: list[float]
    seeds: list[int]
    guidance: str | None
    guidance_weight: float
    shift: float | None
    around: Callable[[int, Stage], AbstractContextManager[Around]]
    budget: int | None
    checkpoint: Checkpoint
    callback: Callable[[Stage, int, int, Any], Any] | None
    progress: bool
    schedule: Schedule = field(default_factory=Schedule)
    done: list[Stage] = field(default_factory=list)

    def run(self) -> Tensor:
        """The pictures of the last stage, (batch, frames, height, width, 3), uint8, on the CPU."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        pictures: Tensor | None = None
        with _quiet(self.pipe):
            for index in range(len(self.sizes)):
                loaded = self.checkpoint.load(index)
                if loaded is not None:
                    pictures = self._resume(index, loaded, generators)
                else:
                    pictures = self._stage(index, pictures, generators)
                    self._keep(index, pictures, generators)
                if self.callback is not None:
                    self.callback(self.done[-1], index, len(self.sizes), as_images(pictures))
        assert pictures is not None, "there is at least one stage"
        return pictures

    # ------------------------------------------------------------------ checkpoint
    def _resume(self, index: int, loaded: Any, generators: list[torch.Generator]) -> Tensor:
        pictures, states, facts = loaded
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        self.schedule.arguments = facts["schedule"]
        grid = facts["stage"].pop("grid")
        stage = Stage(**{**facts["stage"], "grid": tuple(grid) if grid else None, "resumed": True})
        self.done.append(stage)
        return pictures

    def _keep(self, index: int, pictures: Tensor, generators: list[torch.Generator]) -> None:
        facts = {
            "stage": {k: v for k, v in vars(self.done[-1]).items() if k != "seams"},
            "schedule": self.schedule.arguments,
        }
        self.checkpoint.save(index, pictures, [g.get_state() for g in generators], facts)

    # ------------------------------------------------------------------ one stage
    def _stage(self, index: int, before: Tensor | None, generators: list[torch.Generator]) -> Tensor:
        size = self.sizes[index]
        strength = 1.0 if before is None else self.strengths[index - 1]
        stage = Stage(index, *size, strength)
        started = time.perf_counter()
        with self._bar(index) as tick:
            first = self.done[0] if self.done else stage
            if before is None:
                with (
                    watched(self.pipe) as watcher,
                    recorded(self.pipe, self.schedule, tick),
                    self._vae(size) as seams,
                ):
                    pictures, left = self._call(size, generators, {}), Around()
            else:
                with (
                    self.around(index, first) as left,
                    watched(self.pipe) as watcher,
                    self._vae(size) as seams,
                ):
                    pictures = self._refine(before, size, strength, generators, tick)
        layout = watcher.layout
        self.done.append(
            Stage(
                index,
                *size,
                strength,
                steps=tick.count,
                seconds=round(time.perf_counter() - started, 3),
                grid=layout.grid if layout else None,
                tokens=layout.tokens if layout else 0,
                density=left.density,
                report=left.report,
                seams=tuple(seams),
            )
        )
        return pictures

    def _refine(
        self, before: Tensor, size: Size, strength: float, generators: list[torch.Generator], tick: Any
    ) -> Tensor:
        enlarged = resize(before.movedim(-1, -3).float() / 255, size).clamp(0, 1)
        reference = self.latents.encode(enlarged)
        noise = _noise(reference, generators)
        scheduler = staged(self.pipe.scheduler, self.schedule, strength, self.shift, tick)
        # a rehearsal of what the pipeline is going to call tells the level that the run begins at
        scheduler.set_timesteps(device=reference.device)
        start = noised(scheduler, reference, noise, scheduler.timesteps[0])
        factor = max(size[0] / before.shape[-3], size[1] / before.shape[-2])
        guide = Guide(self.guidance, self.guidance_weight, factor, self.latents, reference, noise)
        scheduler.vidattn_guide = guide
        with scheduler_replaced(self.pipe, scheduler):
            return self._call(size, generators, {**self.stage_call, "latents": self.latents.pack(start)})

    def _call(self, size: Size, generators: list[torch.Generator], extra: dict[str, Any]) -> Tensor:
        given = {**self.call, **extra, "height": size[0], "width": size[1], "output_type": "pt"}
        if "latents" in extra:
            given["latents"] = extra["latents"].to(_denoiser_dtype(self.pipe, self.latents))
        generator = generators[0] if len(generators) == 1 else generators
        result = self.pipe(**given, generator=generator)
        values = result.frames if hasattr(result, "frames") else result.images[:, None]
        if values.shape[-2:] != torch.Size(size):
            height, width = values.shape[-2:]
            raise ValueError(
                f"{type(self.pipe).__name__} made {height}x{width} where {size[0]}x{size[1]} was asked"
            )
        if not bool(values.isfinite().all()):
            raise RuntimeError(f"{type(self.pipe).__name__} returned values that aren't finite at {size}")
        return pictures_of(values)

    def _vae(self, size: Size) -> AbstractContextManager[list[Seams]]:
        pixels = size[0] * size[1] * int(self.call.get("num_frames") or 1)
        return vae_within(self.pipe.vae, pixels, self.budget)

    @contextmanager
    def _bar(self, index: int) -> Iterator[Any]:
        from tqdm import tqdm

        steps = int(
            self.call.get("num_inference_steps") or self.schedule.arguments.get("num_inference_steps") or 0
        )
        if index and steps:
            steps = steps_run(steps, self.strengths[index - 1])
        height, width = self.sizes[index]
        label = f"stage {index + 1}/{len(self.sizes)}, {height}x{width}"
        slow = 0.1 if sys.stderr.isatty() else 10.0
        hidden = not self.progress
        with tqdm(total=steps or None, desc=label, mininterval=slow, disable=hidden) as bar:
            yield Tick(bar)


class Tick:
    """Counts steps, and moves a progress bar."""

    def __init__(self, bar: Any) -> None:
        self.count, self._bar = 0, bar

    def __call__(self) -> None:
        self.count += 1
        self._bar.update()


def _denoiser_dtype(pipe: Any, latents: Latents) -> torch.dtype:
    """The dtype in which the pipeline makes latents of its own: the model's, or float32."""
    if latents.video or latents.family in ("z_image", "hunyuan_video"):
        return torch.float32
    model = getattr(pipe, "unet", None) or pipe.transformer
    return model.dtype


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    given = generators[0] if len(generators) == 1 else list(generators)
    return randn_tensor(like.shape, generator=given, device=like.device, dtype=like.dtype)


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bars: the stages have theirs."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before


def pictures_of(values: Tensor) -> Tensor:
    """A pipeline's (batch, frames, 3, height, width) in [0, 1] as uint8 (batch, frames, height, width, 3)."""
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().contiguous()


def as_images(pictures: Tensor) -> list[Any]:
    """PIL images of (batch, frames, height, width, 3) values; of clips, a list of frames each."""
    from PIL import Image

    clips = [[Image.fromarray(frame.numpy()) for frame in clip] for clip in pictures]
    return [clip[0] if len(clip) == 1 else clip for clip in clips]
