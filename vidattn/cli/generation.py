"""Loading a pipeline and calling it: what ``vidattn generate`` does before anything is saved or printed."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vidattn
from vidattn import demo_models
from vidattn.backends import check_backend
from vidattn.cli.arguments import BadArgument, check_output
from vidattn.cli.pictures import MOVING
from vidattn.patterns import PATTERNS
from vidattn.patterns.text import nearest
from vidattn.pipelines.sizes import frame_step, size_step


@dataclass(frozen=True)
class Run:
    """One call of the pipeline.

    Args:
        frames: (frames, height, width, 3) in [0, 1]; a picture has one frame.
        seconds: of the whole call, text encoders and VAE included.
    """

    frames: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Loaded:
    """A pipeline with what its folder says.

    Args:
        pipe: on its device.
        name: as the user gave it.
        defaults: call arguments that suit it.
    """

    pipe: Any
    name: str
    defaults: dict[str, Any]


def quiet_libraries() -> None:
    """Only errors from diffusers and transformers, not their notes on optional packages."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()


def check_names(arguments: argparse.Namespace) -> None:
    """Refuse an unknown backend or pattern, or a file name of another kind, before anything is loaded."""
    from vidattn.patches.presets import PRESETS

    check_output(arguments.output or Path("image.png"), MOVING)
    try:
        check_backend(arguments.backend)
    except ValueError as error:
        raise BadArgument("--backend", str(error)) from error
    name = arguments.pattern.partition(":")[0].strip().lower()
    known = {"none": "", **PRESETS, **PATTERNS}
    if name not in known and not Path(arguments.pattern).is_file():
        raise BadArgument("--pattern", f"unknown pattern {name!r}: {nearest(name, known)}")


# ---------------------------------------------------------------- where it runs
def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU that torch can use, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadArgument("--device", f"{name!r} cannot be used here: {reason}") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is bfloat16 on CUDA, else float32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


# ---------------------------------------------------------------- the model
def find_model(name: str) -> demo_models.PipelineFolder | str:
    """The folder of a local or shipped pipeline, or ``name`` itself where it can only be a hub id."""
    shipped = demo_models.shipped()
    if Path(name).is_dir():
        try:
            return demo_models.read(Path(name))
        except ValueError as error:
            raise BadArgument("--model", str(error)) from error
    if name in shipped:
        return shipped[name]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).parent.is_dir():
        return name
    known = nearest(name, list(shipped)) if shipped else "This installation ships none"
    raise BadArgument("--model", f"{name!r} is no folder, no hub id (owner/name) and no demo model. {known}")


def load(name: str, device: torch.device, dtype: torch.dtype) -> Loaded:
    """The pipeline, on its device. Only safetensors are read.

    Raises:
        BadArgument: there is no such model, or its files can't be loaded.
    """
    found = find_model(name)
    from diffusers import DiffusionPipeline

    source, defaults, local = found, {}, False
    if isinstance(found, demo_models.PipelineFolder):
        source, defaults, local = str(found.path), found.defaults, True
    options = {"dtype": dtype, "local_files_only": local, "use_safetensors": True}
    try:
        pipe = DiffusionPipeline.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadArgument("--model", f"{name!r} cannot be loaded: {reason}") from error
    return Loaded(pipe.to(device), name, defaults)


# ---------------------------------------------------------------- the call
def call_arguments(model: Loaded, arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the pipeline's call: the model's defaults, and over them what the user gave.

    Raises:
        BadArgument: the pipeline has no such argument, or a size that it can't make.
    """
    known = inspect.signature(model.pipe.__call__).parameters
    if "prompt" not in known:
        raise BadArgument("--model", f"{type(model.pipe).__name__} takes no prompt")
    for key in model.defaults:
        if key not in known:
            raise BadArgument("--model", f"vidattn.json of {model.name!r}: its pipeline has no {key!r}")
    height, width = arguments.size or (None, None)
    given = {
        "prompt": ("--prompt", arguments.prompt),
        "negative_prompt": ("--negative-prompt", arguments.negative_prompt),
        "height": ("--size", height),
        "width": ("--size", width),
        "num_frames": ("--frames", arguments.frames),
        "num_inference_steps": ("--steps", arguments.steps),
        _guidance_name(model): ("--guidance", arguments.guidance),
        "max_sequence_length": ("--max-sequence-length", arguments.max_sequence_length),
    }
    call = dict(model.defaults)
    for key, (option, value) in given.items():
        if value is None:
            continue
        if key not in known:
            raise BadArgument(option, f"{type(model.pipe).__name__} has no {key}")
        call[key] = value
    if "true_cfg_scale" in call:
        call.setdefault("negative_prompt", "")  # without one, diffusers ignores the scale
    _check_size(model.pipe, call)
    return call


def _guidance_name(model: Loaded) -> str:
    """An undistilled FLUX is guided the classical way, which its pipeline calls true_cfg_scale."""
    known = inspect.signature(model.pipe.__call__).parameters
    config = getattr(getattr(model.pipe, "transformer", None), "config", {})
    if "true_cfg_scale" in known and not config.get("guidance_embeds", True):
        return "true_cfg_scale"
    return "guidance_scale"


def _check_size(pipe: Any, call: dict[str, Any]) -> None:
    """Sizes between two multiples would be rounded silently by some pipelines; here they are refused."""
    step = size_step(pipe)
    height, width = call.get("height"), call.get("width")
    if (height or step) % step or (width or step) % step:
        raise BadArgument("--size", f"{height}x{width}: both must be multiples of {step} for this model")
    temporal = frame_step(pipe)
    frames = call.get("num_frames")
    if frames and (frames - 1) % temporal:
        near = frames - (frames - 1) % temporal
        raise BadArgument("--frames", f"{frames}: must be 1 more than a multiple of {temporal}, as {near}")


def moving(model: Loaded) -> bool:
    """Whether the pipeline makes clips."""
    return "num_frames" in inspect.signature(model.pipe.__call__).parameters


# ---------------------------------------------------------------- the patch
@contextmanager
def patched(model: Loaded, arguments: argparse.Namespace) -> Iterator[Any]:
    """The pipeline with the pattern that the user asked for; gives the patch's handle."""
    try:
        handle = vidattn.patch(model.pipe, arguments.pattern, **patch_options(arguments))
    except TypeError as error:  # no part of the pipeline can be patched
        raise BadArgument("--model", str(error)) from error
    except (ValueError, FileNotFoundError) as error:
        raise BadArgument(_culprit(str(error)), str(error)) from error
    try:
        yield handle
    finally:
        handle.unpatch()


def patch_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``vidattn.patch`` beside the pattern."""
    options = {
        name: getattr(arguments, name) for name in ("dense_steps", "dense_last_steps", "backend", "weights")
    }
    layers = [part.strip() for part in arguments.dense_layers.split(",") if part.strip()]
    options["dense_layers"] = [int(part) if re.fullmatch(r"-?\d+", part) else part for part in layers]
    options["min_tokens"] = "auto" if arguments.min_tokens is None else arguments.min_tokens
    return options


def _culprit(message: str) -> str:
    """The option that an error of ``vidattn.patch`` is about."""
    if message.startswith("weights") or ".safetensors" in message:
        return "--weights"
    return "--dense-layers" if message.startswith("dense_layers") or "no layer" in message else "--pattern"


def facts(report: Any) -> tuple[list[tuple[str, str]], str]:
    """What a patched run did, from its report: summary lines, and the whole report as text."""
    groups: dict[tuple[Any, ...], int] = {}
    for row in report.layers:
        key = (row.pattern, row.grid, row.text_tokens, row.steps, row.density, row.backend, row.reason)
        groups[key] = groups.get(key, 0) + 1
    lines = []
    for (pattern, grid, text, steps, density, backend, reason), layers in groups.items():
        where = f"grid {'x'.join(map(str, grid))}" if grid else "no grid"
        where += f" + {text} text tokens" if text else ""
        where += f", {layers} layers, {steps} steps"
        what = f"density {density:.3f}, backend {backend}" + (f" ({reason})" if reason else "")
        lines.append(("pattern", f"{pattern}: {where}, {what}"))
    if report.density is not None:
        lines.append(("density", f"{report.density:.3f} of the pairs of the whole run were computed"))
    return lines, str(report)


def generate(model: Loaded, call: dict[str, Any], seed: int, label: str) -> Run:
    """One call with the seed, with a progress bar of that label.

    On a GPU a call of two steps goes before the one that is timed: it loads and tunes kernels.
    """
    pipe = model.pipe
    if torch.device(pipe.device).type != "cpu":
        pipe.set_progress_bar_config(desc="warm-up", leave=False)
        pipe(**call | {"num_inference_steps": 2}, output_type="latent")
    pipe.set_progress_bar_config(desc=label, mininterval=0.1 if sys.stderr.isatty() else 10.0, leave=True)
    # A generator on the CPU gives the same noise on every device.
    generator = torch.Generator("cpu").manual_seed(seed)
    started = time.perf_counter()
    result = pipe(**call, generator=generator, output_type="np")
    seconds = time.perf_counter() - started
    frames = result.frames[0] if hasattr(result, "frames") else result.images[:1]
    frames = np.asarray(frames, dtype=np.float32)
    if not np.isfinite(frames).all():
        raise RuntimeError(f"the pipeline returned values that aren't finite ({label}); try --dtype float32")
    return Run(frames, seconds)
