"""Starting a pipeline's loop in the middle of its schedule, near a given picture.

A pipeline's ``scheduler`` is a documented component, and ``latents=`` a documented argument: for the length
of one call the scheduler is replaced by a copy that keeps its class and settings, begins at a later step,
and guides each step.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vidattn.pipelines.guidance import cosine, levels, low_pass
from vidattn.pipelines.latents import Latents

GUIDANCE = ("latent", "frequency")


@dataclass
class Schedule:
    """What a pipeline gave its scheduler's ``set_timesteps`` in the first stage; later stages repeat it.

    Repeating is needed: some pipelines shift the schedule by the number of tokens, and beyond the trained
    sizes that formula leaves almost no step below full noise.

    Args:
        arguments: by name, without the device; JSON values.
    """

    arguments: dict[str, Any] = field(default_factory=dict)

    def record(self, scheduler: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Take down a call of ``set_timesteps``."""
        names = _names(scheduler)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given.pop("device", None)
        self.arguments = {name: _plain(value) for name, value in given.items() if value is not None}


@dataclass
class Guide:
    """The reference of one stage.

    Args:
        kind: "latent", "frequency" or None.
        weight: factor of the guidance.
        factor: how much larger this stage is than the one before.
        latents: how the pipeline holds pictures.
        reference: clean latents of the picture before, enlarged, unpacked.
        noise: what was added to them, unpacked.
    """

    kind: str | None
    weight: float
    factor: float
    latents: Latents
    reference: Tensor
    noise: Tensor


class _Staged:
    """Mixed into the class of a copied scheduler; see :func:`staged`."""

    vidattn_schedule: Schedule
    vidattn_strength: float
    vidattn_guide: Guide | None
    vidattn_shift: float | None
    vidattn_tick: Callable[[], None]

    @property
    def init_noise_sigma(self) -> float:
        return 1.0  # the latents are as noisy as they shall be

    @init_noise_sigma.setter
    def init_noise_sigma(self, value: Any) -> None:
        pass


def _set_timesteps(scheduler: Any, original: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    device = kwargs.get("device", dict(zip(_names(scheduler), args, strict=False)).get("device"))
    given = dict(scheduler.vidattn_schedule.arguments)
    _apply_shift(scheduler, given)
    original(scheduler, **given, device=device)
    order = getattr(scheduler, "order", 1)
    steps = int(scheduler.num_inference_steps)
    begin = steps - steps_run(steps, scheduler.vidattn_strength)
    # cut, not begun at an index: several pipelines set the index to 0 before they loop
    scheduler.timesteps = scheduler.timesteps[begin * order :]
    if getattr(scheduler, "sigmas", None) is not None:
        scheduler.sigmas = scheduler.sigmas[begin * order :]


def _apply_shift(scheduler: Any, given: dict[str, Any]) -> None:
    shift = scheduler.vidattn_shift
    if shift is None:
        return
    if scheduler.config.get("use_dynamic_shifting", False):
        exponential = scheduler.config.get("time_shift_type", "exponential") == "exponential"
        given["mu"] = float(np.log(shift)) if exponential else shift
    else:
        scheduler.set_shift(shift)


def check_shift(scheduler: Any, shift: float | None) -> None:
    """Refuse a time shift where the scheduler has none.

    Raises:
        ValueError: not positive, or the scheduler cannot be shifted.
    """
    if shift is None:
        return
    if not isinstance(shift, (int, float)) or shift <= 0:
        raise ValueError(f"time_shift={shift!r}: a positive number, or None to keep the pipeline's")
    if not scheduler.config.get("use_dynamic_shifting", False) and not hasattr(scheduler, "set_shift"):
        raise ValueError(f"time_shift={shift}: {type(scheduler).__name__} has no time shift; leave it None")


def steps_run(steps: int, strength: float) -> int:
    """How many of the steps a strength runs, as diffusers' image-to-image pipelines count; one at least."""
    return max(1, min(steps, int(steps * strength + 1e-6)))


def _step(scheduler: Any, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    given = {**dict(zip(("model_output", "timestep", "sample"), args, strict=False)), **kwargs}
    rest = args[3:]  # what a scheduler takes beyond these by position
    guide, time = scheduler.vidattn_guide, float(given["timestep"])
    if guide is not None and guide.kind == "frequency":
        given["model_output"] = _pull_low_band(scheduler, guide, time, given)
    result = original(
        scheduler, given.pop("model_output"), given.pop("timestep"), given.pop("sample"), *rest, **given
    )
    if guide is not None and guide.kind == "latent":
        result = _mix(scheduler, guide, time, result)
    scheduler.vidattn_tick()
    return result


def _pull_low_band(scheduler: Any, guide: Guide, time: float, given: dict[str, Any]) -> Tensor:
    """I-Max: the low frequencies of the predicted picture go towards those of the reference."""
    output, sample = given["model_output"], given["sample"]
    if output.shape != sample.shape:
        raise ValueError("guidance: the model also predicts a variance; use guidance=None")
    weight = min(1.0, guide.weight * cosine(time, scheduler.config.num_train_timesteps))
    level = levels(scheduler, given["timestep"])
    if weight == 0 or level.sigma == 0:
        return output
    latents = guide.latents
    flat_output, flat_sample = (latents.unpack(t.float(), guide.reference) for t in (output, sample))
    clean = level.clean(flat_output, flat_sample)
    clean = clean + weight * low_pass(guide.reference.to(clean.device) - clean, guide.factor)
    return latents.pack(level.output(clean, flat_sample)).to(output.dtype)


def _mix(scheduler: Any, guide: Guide, time: float, result: Any) -> Any:
    """LinFusion's skip residual: the sample goes towards the reference with noise of the next step."""
    later = scheduler.timesteps[scheduler.timesteps < time]
    if not len(later):
        return result
    following = later.max()
    weight = min(1.0, guide.weight * cosine(float(following), scheduler.config.num_train_timesteps) ** 3)
    sample = result[0] if isinstance(result, tuple) else result.prev_sample
    reference = guide.latents.pack(noised(scheduler, guide.reference, guide.noise, following))
    mixed = torch.lerp(sample.float(), reference.to(sample.device), weight).to(sample.dtype)
    if isinstance(result, tuple):
        return (mixed, *result[1:])
    result.prev_sample = mixed
    return result


def noised(scheduler: Any, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """``clean`` with the noise of a timestep."""
    times = timestep.reshape(1).repeat(clean.shape[0]).to(clean.device)
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(clean, times, noise)
    return scheduler.add_noise(clean, noise, times)


def staged(
    scheduler: Any,
    schedule: Schedule,
    strength: float,
    shift: float | None,
    tick: Callable[[], None],
) -> Any:
    """A copy of ``scheduler`` whose runs repeat ``schedule`` and begin at a strength."""
    made = copy.deepcopy(scheduler)
    cls = type(made)
    step, set_timesteps = cls.step, cls.set_timesteps

    @functools.wraps(set_timesteps)
    def set_times(self: Any, *args: Any, **kwargs: Any) -> None:
        _set_timesteps(self, set_timesteps, args, kwargs)

    @functools.wraps(step)
    def take_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _step(self, step, args, kwargs)

    made.__dict__.pop("init_noise_sigma", None)
    members = {"set_timesteps": set_times, "step": take_step, "__module__": cls.__module__}
    made.__class__ = type(cls.__name__, (_Staged, cls), members)
    made.vidattn_schedule, made.vidattn_strength, made.vidattn_shift = schedule, strength, shift
    made.vidattn_guide, made.vidattn_tick = None, tick
    return made


@contextmanager
def scheduler_replaced(pipe: Any, new: Any) -> Iterator[None]:
    """``pipe.scheduler`` is another one for the length of a ``with`` block."""
    old = pipe.scheduler
    pipe.scheduler = new
    try:
        yield
    finally:
        pipe.scheduler = old


@contextmanager
def recorded(pipe: Any, schedule: Schedule, tick: Callable[[], None]) -> Iterator[None]:
    """Take down what the pipeline gives its scheduler; nothing else changes."""
    new = copy.deepcopy(pipe.scheduler)
    cls = type(new)

    @functools.wraps(cls.set_timesteps)
    def set_times(self: Any, *args: Any, **kwargs: Any) -> None:
        schedule.record(self, args, kwargs)
        cls.set_timesteps(self, *args, **kwargs)

    @functools.wraps(cls.step)
    def take_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        tick()
        return cls.step(self, *args, **kwargs)

    members = {"set_timesteps": set_times, "step": take_step, "__module__": cls.__module__}
    new.__class__ = type(cls.__name__, (cls,), members)
    with scheduler_replaced(pipe, new):
        yield


@functools.lru_cache(maxsize=32)
def _parameters(cls: Any) -> tuple[str, ...]:
    import inspect

    return tuple(inspect.signature(cls.set_timesteps).parameters)[1:]


def _names(scheduler: Any) -> tuple[str, ...]:
    return _parameters(cast(Any, type(scheduler)))


def _plain(value: Any) -> Any:
    """As JSON holds it; floats stay exact."""
    if isinstance(value, (Tensor, np.ndarray)):
        return [float(x) for x in value]
    if isinstance(value, (list, tuple)):
        return [float(x) if isinstance(x, (np.floating, float)) else int(x) for x in value]
    return float(value) if isinstance(value, np.floating) else value
