"""One denoiser step of a full-size configuration with random weights: dense and patched, eager and compiled.

    python -m benchmarks.denoiser_step flux-2048 flux-4096 wan-14b-720p --save denoiser_step_h100

Each way runs the same model on the same inputs: PyTorch's default attention, cuDNN's (CUDA only), and the
patch. Time is the median of repeated forwards, memory the peak of one above the weights and inputs. A patched
step is reported only where the patch with a full window agrees with the dense step.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import vidattn
from benchmarks import RESULTS
from vidattn.bench.measure import milliseconds, peak_memory
from vidattn.bench.record import save, table

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One model at one size.

    Args:
        cls: the transformer's class in diffusers.
        config: arguments of the class that are not its defaults.
        inputs: (height, width, frames, config, device, dtype) to the forward's arguments.
        size: (height, width) in pixels.
        frames: of a clip, else 1.
        pattern: what the patch gets.
    """

    cls: str
    config: dict[str, Any]
    inputs: Callable[..., Inputs]
    size: tuple[int, int]
    frames: int
    pattern: str


def _flux(
    height: int, width: int, frames: int, config: Any, device: torch.device, dtype: torch.dtype
) -> Inputs:
    rows, columns = height // 16, width // 16
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None]
    made = _random(device, dtype)
    return {
        "hidden_states": made(1, rows * columns, config.in_channels),
        "encoder_hidden_states": made(1, 512, config.joint_attention_dim),
        "pooled_projections": made(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5], device=device, dtype=dtype),
        "guidance": torch.tensor([3.5], device=device, dtype=dtype) if config.guidance_embeds else None,
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(512, 3, device=device),
    }


def _wan(
    height: int, width: int, frames: int, config: Any, device: torch.device, dtype: torch.dtype
) -> Inputs:
    made = _random(device, dtype)
    return {
        "hidden_states": made(1, config.in_channels, (frames - 1) // 4 + 1, height // 8, width // 8),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": made(1, 512, config.text_dim),
    }


def _hunyuan(
    height: int, width: int, frames: int, config: Any, device: torch.device, dtype: torch.dtype
) -> Inputs:
    made = _random(device, dtype)
    return {
        "hidden_states": made(1, config.in_channels, (frames - 1) // 4 + 1, height // 8, width // 8),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": made(1, 256, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(1, 256, device=device, dtype=dtype),
        "pooled_projections": made(1, config.pooled_projection_dim),
        "guidance": torch.tensor([6000.0], device=device, dtype=dtype) if config.guidance_embeds else None,
    }


def _random(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(shape, device=device, dtype=dtype, generator=generator)


_FLUX = {"guidance_embeds": True}
_WAN_SMALL = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
STEPS = {
    "flux-1024": Step("FluxTransformer2DModel", _FLUX, _flux, (1024, 1024), 1, "neighborhood:window=17"),
    "flux-2048": Step("FluxTransformer2DModel", _FLUX, _flux, (2048, 2048), 1, "neighborhood:window=33"),
    "flux-4096": Step("FluxTransformer2DModel", _FLUX, _flux, (4096, 4096), 1, "neighborhood:window=33"),
    "wan-1.3b-480p": Step(
        "WanTransformer3DModel", _WAN_SMALL, _wan, (480, 832), 81, "neighborhood:window=9x15x15"
    ),
    "wan-14b-720p": Step("WanTransformer3DModel", {}, _wan, (720, 1280), 81, "neighborhood:window=9x21x21"),
    "hunyuan-720p": Step(
        "HunyuanVideoTransformer3DModel", {}, _hunyuan, (720, 1280), 129, "neighborhood:window=18x24x24"
    ),
}
"""The steps by name; configurations are the classes' defaults, which are the released models'."""
BOUND = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Greatest ||full window - dense|| / ||dense|| of a step: rounding, carried through all layers."""


def build(step: Step, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    """The model with random weights, and its arguments."""
    import diffusers

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # weights are made where and as they stay
    try:
        with torch.device(device):
            model = getattr(diffusers, step.cls)(**step.config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    return model, step.inputs(*step.size, step.frames, model.config, device, dtype)


def ways(model: nn.Module, pattern: str, device: torch.device) -> Iterator[tuple[str, Any]]:
    """Names and contexts in which the forward is measured."""
    yield "dense, default", contextlib.nullcontext
    if device.type == "cuda":
        yield "dense, cuDNN", lambda: sdpa_kernel([SDPBackend.CUDNN_ATTENTION])
    yield f"patched, {pattern}", lambda: vidattn.patched(model, pattern, min_tokens=0)


@torch.no_grad()
def disagreement(model: nn.Module, arguments: Inputs) -> float:
    """How far the patch with a window of the whole grid is from the unpatched model, relative to its norm."""
    right = model(**arguments, return_dict=False)[0].double()
    # larger than any grid: it is cut to it, and runs through the patch
    with vidattn.patched(model, "neighborhood:window=100000x100000x100000", min_tokens=0):
        got = model(**arguments, return_dict=False)[0].double()
    return float((got - right).norm() / right.norm())


@torch.no_grad()
def measure(
    name: str, step: Step, device: torch.device, dtype: torch.dtype, compiled: bool
) -> list[dict[str, Any]]:
    """Rows of one step: every way, eager and where asked for compiled."""
    model, arguments = build(step, device, dtype)
    error = disagreement(model, arguments)
    rows: list[dict[str, Any]] = []
    for way, context in ways(model, step.pattern, device):
        for mode in ("eager", "compiled") if compiled else ("eager",):
            row: dict[str, Any] = {"step": name, "way": way, "mode": mode}
            if way.startswith("patched") and not error <= BOUND[dtype]:
                rows.append(row | {"note": f"a full window differs from dense by {error:.1e} of its norm"})
                continue
            with context() as handle:
                rows.append(row | _figures(model, arguments, mode, device))
                if way.startswith("patched"):
                    rows[-1]["density"] = handle.report().density
            torch._dynamo.reset()
    for row in rows:
        base = next(
            (r["ms"] for r in rows if r["way"] == "dense, default" and r["mode"] == row["mode"]), None
        )
        if base and "ms" in row:
            row["times default"] = base / row["ms"]
    return rows


def _figures(model: nn.Module, arguments: Inputs, mode: str, device: torch.device) -> dict[str, float | None]:
    function = torch.compile(model) if mode == "compiled" else model

    def step() -> Any:
        return function(**arguments, return_dict=False)[0]

    try:
        return {**milliseconds(step, device, repeats=3), "MiB": peak_memory(step, device)}
    except torch.OutOfMemoryError:
        gc.collect()
        return {"note": "out of memory"}  # type: ignore[dict-item]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--no-compile", action="store_true", help="eager only")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="write it there instead")
    return parser.parse_args()


def main() -> None:
    """Print the table, and save it when asked."""
    arguments = parse()
    unknown = set(arguments.steps) - set(STEPS)
    if unknown:
        raise SystemExit(f"unknown steps {', '.join(sorted(unknown))}: give some of {', '.join(STEPS)}")
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    rows: list[dict[str, Any]] = []
    for name in tqdm(arguments.steps or list(STEPS), desc="steps", file=sys.stderr):
        rows += measure(name, STEPS[name], device, dtype, not arguments.no_compile)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(table(rows, ["step", "way", "mode", "density", "ms", "MiB", "times default", "note"]))
    if arguments.save:
        path = arguments.folder / f"{arguments.save}.json"
        print("saved", save(path, rows, device, dtype=arguments.dtype).name)


if __name__ == "__main__":
    main()
