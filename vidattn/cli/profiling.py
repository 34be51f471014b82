"""Profiles a pipeline: time by component, by layer class of the denoiser, and of attention itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

CORES = ("vidattn::attention", "vidattn::linear_attention", "aten::scaled_dot_product_attention")
"""Operators that compute attention, projections left out."""
_COMPONENT, _LAYER = "component ", "layer "


@dataclass(frozen=True)
class Part:
    """One line of the result.

    Args:
        name: of a component, layer class or operator.
        calls: how often it ran.
        seconds: what it took, with everything inside: on the device, or on the CPU's clock.
        depth: 0 for components and operators, 1 for layers of the denoiser.
    """

    name: str
    calls: int
    seconds: float
    depth: int


@dataclass(frozen=True)
class Found:
    """A profile.

    Args:
        seconds: of the whole call on the device (the CPU's clock where that is the device).
        parts: in the order to print.
        profile: PyTorch's.
    """

    seconds: float
    parts: tuple[Part, ...]
    profile: Any


def profile(pipe: Any, call: dict[str, Any], device: torch.device) -> Found:
    """One call of the pipeline to warm up, then one with the profiler."""
    pipe.set_progress_bar_config(disable=True)
    pipe(**call, generator=torch.Generator("cpu").manual_seed(0))
    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with _labels(pipe), torch.profiler.profile(activities=kinds) as recorded, record_function(_COMPONENT):
        pipe(**call, generator=torch.Generator("cpu").manual_seed(0))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return _read(recorded, device)


def lines(found: Found) -> Iterator[str]:
    """The profile as a table."""
    yield f"{'':<56}{'calls':>8}{'ms':>12}{'share':>8}"
    for part in (Part("whole call", 1, found.seconds, 0), *found.parts):
        name = "  " * part.depth + part.name
        share = part.seconds / found.seconds
        yield f"{name:<56}{part.calls:>8}{1e3 * part.seconds:>12.1f}{share:>8.1%}"


# ---------------------------------------------------------------------- labels
@contextmanager
def _labels(pipe: Any) -> Iterator[None]:
    """Names ranges of the profile after the modules that run in them."""
    with ExitStack() as stack:
        for name, module in _modules(pipe):
            for hook in _around(module, name):
                stack.callback(hook.remove)
        yield


def _modules(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules to watch: the pipeline's components, attention and feed-forward modules of its denoisers."""
    for name, component in pipe.components.items():
        if not isinstance(component, nn.Module):
            continue
        yield _COMPONENT + name, component
        # a VAE is called by its methods: what they run inside is watched
        for part in ("encoder", "decoder"):
            inner = getattr(component, part, None)
            if "vae" in name and isinstance(inner, nn.Module):
                yield f"{_COMPONENT}{name} {part}", inner
        if name.startswith(("transformer", "unet")):
            yield from _layers(component)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Outermost attention and feed-forward modules inside."""
    for child in module.children():
        name = type(child).__name__
        if hasattr(child, "processor") or "FeedForward" in name or name.endswith("MLP"):
            yield _LAYER + name, child
        else:
            yield from _layers(child)


def _around(module: nn.Module, name: str) -> tuple[Any, Any]:
    """Hooks that open and close a range."""
    opened: list[Any] = []

    def enter(*_: Any) -> None:
        opened.append(record_function(name))
        opened[-1].__enter__()

    def leave(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)


# ---------------------------------------------------------------------- reading
def _read(recorded: Any, device: torch.device) -> Found:
    def seconds(event: Any) -> float:
        return float(event.device_time_total if device.type == "cuda" else event.cpu_time_total) / 1e6

    # on a GPU a range comes twice, as it was on the CPU and as a span of the device
    events: dict[str, tuple[int, float]] = {}
    for event in recorded.key_averages():
        known = events.get(event.key)
        if known is None or seconds(event) > known[1]:
            events[event.key] = event.count, seconds(event)

    def parts(prefix: str, depth: int) -> list[Part]:
        found = [
            Part(key.removeprefix(prefix), *value, depth)
            for key, value in events.items()
            if key.startswith(prefix) and key != prefix
        ]
        return sorted(found, key=lambda part: -part.seconds)

    layers = parts(_LAYER, 1)
    cores = [Part(f"attention itself, {name}", *events[name], 0) for name in CORES if name in events]
    rows: list[Part] = []
    for component in parts(_COMPONENT, 0):
        rows.append(component)
        if component.name.startswith(("transformer", "unet")) and layers:
            rows += layers
            layers = []
    return Found(events[_COMPONENT][1], (*rows, *cores), recorded)
