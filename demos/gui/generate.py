"""Patched and dense runs of one order, and how they differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vidattn.cli import generation
from vidattn.cli.outcome import Outcome
from vidattn.patches.targets import modules_of

from . import memory
from .catalog import Catalog
from .engine import Job, Step
from .order import Order

GAIN = 4
"""Differences are shown this many times enlarged: most are too small to be seen."""


@dataclass
class Result:
    """What one order gave.

    Args:
        order: what was asked for.
        outcome: the runs with their settings and quality.
        call: arguments of the pipeline's call.
        peaks: highest memory in bytes of the "patched" and "dense" run.
        density: share of all attention pairs that the patched run computed.
        report: ``vidattn.report`` as text.
    """

    order: Order
    outcome: Outcome
    call: dict[str, Any]
    peaks: dict[str, int] = field(default_factory=dict)
    density: float | None = None
    report: str = ""

    def frames(self, which: str) -> list[Image.Image]:
        """The pictures of the "patched", "dense" or "difference" run, with the settings as text inside."""
        sparse, dense = self.outcome.sparse, self.outcome.dense
        if which == "difference":
            assert sparse is not None, "asked for after both runs"
            assert dense is not None, "asked for after both runs"
            values = np.clip(np.abs(sparse.frames - dense.frames) * GAIN, 0, 1)
        else:
            run = sparse if which == "patched" else dense
            assert run is not None, f"there is no {which} run"
            values = run.frames
        pictures = [Image.fromarray(frame) for frame in np.rint(values * 255).astype(np.uint8)]
        for picture in pictures:
            picture.info |= {key: str(value) for key, value in self.outcome.settings().items()}
            picture.info["content"] = which
        return pictures


@contextmanager
def stoppable(pipe: Any, job: Job) -> Iterator[None]:
    """Makes every forward of the pipeline's models look whether the job shall stop: no denoising step, text
    encoding or decoding begins after that.
    """
    modules: list[nn.Module] = list(modules_of(pipe).values())
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    if isinstance(decoder, nn.Module):
        modules.append(decoder)
    hooks = [module.register_forward_pre_hook(lambda *_: job.check()) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def progress_of(pipe: Any, job: Job, label: str, total: int) -> dict[str, Any]:
    """The argument of the pipeline's call that tells the job each finished step; empty where it has none.

    Args:
        pipe: the pipeline.
        job: whom to tell.
        label: what the steps belong to.
        total: steps in all; 0 takes what the pipeline counts.
    """
    if "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        return {}

    def stepped(run: Any, index: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
        job.tell(Step(label, index + 1, total or int(getattr(run, "num_timesteps", 0))))
        return values

    return {"callback_on_step_end": stepped}


def run_order(job: Job, catalog: Catalog, order: Order) -> Result:
    """Both runs of an order: the patched one, then the dense one with the same noise.

    Tells the job ``Step``s, and the ``Result`` when the patched run is there.

    Raises:
        Cancelled: the job was stopped; the pipeline is as before.
        ValueError: a size that memory does not hold, or that the model can't make.
    """
    job.tell(Step("loading the model", 0, 1))
    model = catalog.load(order.model)
    call = order.call(model)
    frames = int(call.get("num_frames", 1)) if order.frames is not None else 1
    memory.check(model.pipe, order.height, order.width, frames)
    place = f"{catalog.device}, {str(catalog.dtype).removeprefix('torch.')}"
    result = Result(order, Outcome(order.namespace(), model, call, place), call)
    with stoppable(model.pipe, job):
        if catalog.first_time(order.model, order.height, order.width, order.frames):
            job.tell(Step("warming up, so that the first run is not slower", 0, 1))
            model.pipe.set_progress_bar_config(disable=True)
            model.pipe(**call | {"num_inference_steps": 1}, output_type="latent")
        with generation.patched(model, order.namespace()) as handle:
            result.outcome.sparse = _timed(job, model, call, order, "patched", result.peaks)
            report = handle.report()
        result.outcome.facts, result.report = generation.facts(report)
        result.density = report.density
        if order.compare:
            job.tell(result)
            result.outcome.dense = _timed(job, model, call, order, "dense", result.peaks)
    return result


def _timed(
    job: Job, model: generation.Loaded, call: dict[str, Any], order: Order, label: str, peaks: dict[str, int]
) -> generation.Run:
    total = int(call.get("num_inference_steps", 1))
    job.tell(Step(label, 0, total))
    call = call | progress_of(model.pipe, job, label, total)
    with memory.Peak(torch.device(model.pipe.device)) as peak:
        made = generation.generate(model, call, order.seed, label)
    peaks[label] = peak.bytes
    return made
