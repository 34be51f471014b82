"""FreeSwim (arXiv 2511.14712): clips beyond the trained size, windows guided by a full-attention path.

The window path gives every token the receptive field of the trained size, and so its detail; alone it repeats
subjects. The full-attention path knows the whole: what its cross-attention layers say replaces what those of
the window path would. It runs only every few steps; in between its cross-attention outputs are reused. The
paths are two forwards here, not two rows of a batch: where only the window path is needed, one runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.patches.api import patched
from vidattn.patches.model_patch import patch_of
from vidattn.patches.targets import targets_of
from vidattn.patterns import SlidingWindow
from vidattn.pipelines.arguments import about, check_strengths, checked_call, checked_seeds, describe_call
from vidattn.pipelines.checkpoint import Checkpoint, describe
from vidattn.pipelines.extrapolation import scaled_queries
from vidattn.pipelines.latents import latents_of
from vidattn.pipelines.memory import budget_for, read_memory
from vidattn.pipelines.sizes import (
    Size,
    as_size,
    check_frames,
    check_size,
    default_base,
    frame_step,
    size_step,
    stage_sizes,
)
from vidattn.pipelines.stages import Around, Runner, Stage
from vidattn.pipelines.upscale import Upscaled

CACHES = ("auto", "device", "fp8", "cpu")


@dataclass
class CrossCache:
    """Cross-attention outputs of the full-attention path, one for each layer.

    Args:
        kind: "device" keeps them as they are; "fp8" as 8-bit floats with a scale for each token; "cpu" in the
            main memory; "auto" the first of these that fits the budget.
        budget: bytes; None is no limit.
    """

    kind: str
    budget: int | None
    _kept: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def choose(self, layers: int, like: Tensor) -> None:
        """Settle "auto" for outputs of that shape."""
        if self.kind == "auto":
            size = layers * like.numel()
            fits = self.budget is None or size * like.element_size() <= self.budget
            self.kind = "device" if fits else "fp8" if size <= (self.budget or 0) else "cpu"

    def store(self, layer: int, output: Tensor) -> None:
        """Keep the output of a layer."""
        if self.kind == "fp8":
            scale = output.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448  # the largest e4m3
            self._kept[layer] = (output.float() / scale).to(torch.float8_e4m3fn), scale
        else:
            self._kept[layer] = (output.cpu() if self.kind == "cpu" else output), None

    def load(self, layer: int, like: Tensor) -> Tensor:
        """What was kept of a layer, on the device and in the dtype of ``like``."""
        kept, scale = self._kept[layer]
        values = kept if scale is None else kept.float() * scale
        return values.to(like.device, like.dtype, non_blocking=True)


class DualPath:
    """Runs the full-attention path before the window path, and puts its cross-attention into that.

    Args:
        model: a Wan transformer with a patch on it.
        refresh: the full path runs at every so many steps.
        cache: for its outputs.
    """

    def __init__(self, model: Any, refresh: int, cache: CrossCache) -> None:
        self.model, self.refresh, self.cache = model, refresh, cache
        self.layers = [block.attn2 for block in model.blocks]
        self.mode = "own"  # "record" in the full path, "use" in the window path, "own" without guidance
        self.time, self.step, self.calls, self.full = -1.0, -1, 0, 0

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before each forward: the prompt's comes first in a step, the negative prompt's second."""
        if self.mode == "record":
            return
        time = float(kwargs["timestep"].max())
        self.calls += 1
        if time != self.time:
            self.time, self.calls, self.step = time, 0, self.step + 1
        if self.calls:
            self.mode = "own"
            return
        if self.step % self.refresh == 0:
            self._guide(module, args, kwargs)
        self.mode = "use"

    def _guide(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        patch: Any = patch_of(module)
        decisions = [slot.decision for slot in patch.slots]
        self.mode, patch.paused = "record", True
        try:
            module(*args, **kwargs)
        finally:
            self.mode, patch.paused = "own", False
        for slot, decision in zip(patch.slots, decisions, strict=True):
            slot.decision = decision
        self.full += 1

    def cross(self, number: int, forward: Callable) -> Callable:
        """The ``forward`` of a cross-attention layer."""

        def call(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.mode == "use":
                return self.cache.load(number, hidden_states)
            output = forward(hidden_states, *args, **kwargs)
            if self.mode == "record":
                self.cache.choose(len(self.layers), output)
                self.cache.store(number, output)
            return output

        return call

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Both are in place for the length of a ``with`` block."""
        handle = self.model.register_forward_pre_hook(self.before, with_kwargs=True)
        old = [layer.__dict__.get("forward") for layer in self.layers]
        try:
            for number, layer in enumerate(self.layers):
                layer.forward = self.cross(number, layer.forward)
            yield
        finally:
            handle.remove()
            for layer, before in zip(self.layers, old, strict=True):
                layer.__dict__.pop("forward", None)
                if before is not None:
                    layer.forward = before


@dataclass(frozen=True)
class Paths:
    """What surrounds the call of a stage after the first.

    Args:
        pipe: a ``WanPipeline``.
        refresh: as ``dual_path_video`` says.
        cache: as it says.
        budget: bytes for the cache, or None.
        patch: other arguments of ``vidattn.patch``.
    """

    pipe: Any
    refresh: int
    cache: str
    budget: int | None
    patch: dict[str, Any]

    @contextmanager
    def around(self, index: int, first: Stage) -> Iterator[Around]:
        """Windows, scale and both paths, for the length of a ``with`` block."""
        left = Around()
        assert first.grid is not None, "Wan works on one grid"
        frame = first.grid[1] * first.grid[2]
        factor = math.sqrt(math.log(2 * frame) / math.log(frame)) if frame > 1 else 1.0
        with ExitStack() as stack:
            pattern = SlidingWindow(first.grid[1:])
            handle = stack.enter_context(patched(self.pipe, pattern, **self.patch))
            stack.enter_context(scaled_queries(self.pipe, lambda: factor))
            path = DualPath(self.pipe.transformer, self.refresh, CrossCache(self.cache, self.budget))
            stack.enter_context(path.installed())
            yield left
            report = handle.report()
            left.density = report.density
            ran = f"{path.full} of {path.step + 1} steps, cache {path.cache.kind}"
            left.report = f"{report}\nfull-attention path: {ran}"


def dual_path_video(
    pipe: Any,
    prompt: str | list[str],
    height: int = 1088,
    width: int = 1920,
    frames: int = 81,
    refresh: int = 2,
    *,
    base: int | Size | None = None,
    stages: Any = 1,
    strength: Any = 0.7,
    cache: str = "auto",
    cache_memory: int | str | None = None,
    patch_options: dict[str, Any] | None = None,
    seed: int | list[int] = 0,
    checkpoint: str | Path | None = None,
    max_memory: int | str | None = None,
    callback: Callable[[Stage, int, int, list[Any]], Any] | None = None,
    progress: bool = True,
    **call: Any,
) -> Upscaled:
    """FreeSwim (arXiv 2511.14712): a clip of the trained size, then larger ones with guided windows.

    For Wan 2.1 (``WanPipeline`` with one transformer). The attention of the larger stages is
    ``SlidingWindow`` with the grid of the first stage; its scale is that of the paper, sqrt(log 2P / log P)
    times the usual one with P tokens in a frame of the first stage.

    Args:
        pipe: a ``WanPipeline``, on its device.
        prompt: one, or a list; any batch.
        height: pixels, a multiple of 16 (8 of the VAE times 2 of a patch): 1088, not 1080.
        width: pixels, a multiple of 16.
        frames: 1 more than a multiple of 4.
        refresh: the full-attention path runs at every so many steps; 1 is FreeSwim without its cache.
        base: size of the first stage; None is 480x832 pixels in the proportions of the clip.
        stages: 1 is one jump, as FreeSwim; more, or "auto" for doublings, make it progressive.
        strength: share of the steps that each stage after the first runs.
        cache: where cross-attention outputs stay between refreshes: "device", "fp8", "cpu", or "auto", the
            first that fits ``cache_memory``. At 1088x1920 with 81 frames Wan 1.3B has 15.8 GB of them.
        cache_memory: bytes, or text as "8GiB".
        patch_options: other arguments of ``vidattn.patch``.
        seed: of the noise; a list gives one for each clip.
        checkpoint: folder for finished stages, as for ``upscale_generate``.
        max_memory: as for ``upscale_generate``.
        callback: as for ``upscale_generate``.
        progress: show a bar for each stage.
        **call: other arguments of the pipeline's call, as ``num_inference_steps`` or ``guidance_scale``.

    Returns:
        The clips, a record of every stage, and all settings.

    Raises:
        ValueError: sizes, numbers of frames or values that are not allowed, a checkpoint of another run.
        TypeError: another pipeline, or arguments that it does not take.

    Example:
        >>> made = dual_path_video(wan, "a red fox runs", height=1088, width=1920, frames=81)
    """
    _check(pipe, refresh, cache)
    step, size = size_step(pipe), as_size((height, width), "height, width")
    check_size(size, step, "size")
    check_frames(frames, frame_step(pipe))
    first = default_base(pipe, size) if base is None else as_size(base, "base")
    check_size(first, step, "base")
    sizes = stage_sizes(first, size, 0 if first == size and stages == 1 else stages, step)
    strengths = check_strengths(pipe, strength, len(sizes) - 1)
    call = checked_call(pipe, {"prompt": prompt, "num_frames": frames, **call}, "call")
    seeds = checked_seeds(seed, call)
    cache_budget = None if cache_memory is None else read_memory(cache_memory)
    budget = budget_for(pipe, max_memory, size, call)
    settings = {
        **about(pipe),
        "call": describe_call(call),
        **{"sizes": sizes, "strengths": strengths, "seed": seed, "refresh": refresh},
        **{"cache": cache, "cache_memory": cache_budget, "patch_options": describe(patch_options)},
    }

    runner = Runner(
        pipe,
        latents_of(pipe),
        call,
        {},
        sizes,
        strengths,
        seeds,
        None,
        1.0,
        None,
        Paths(pipe, refresh, cache, cache_budget, patch_options or {}).around,
        budget,
        Checkpoint(checkpoint, settings),
        callback,
        progress,
    )
    return Upscaled(runner.run(), runner.done, settings)


def _check(pipe: Any, refresh: Any, cache: Any) -> None:
    targets = targets_of(pipe)
    if type(targets[0].model).__name__ != "WanTransformer3DModel" or len(targets) > 1:
        raise TypeError(f"{type(pipe).__name__}: dual_path_video drives a WanPipeline with one transformer")
    if type(refresh) is not int or refresh < 1:
        raise ValueError(f"refresh={refresh!r}: a number of steps, at least 1")
    if cache not in CACHES:
        raise ValueError(f"cache={cache!r}: one of {', '.join(CACHES)}")
