"""``vidattn report``: what a pattern will do in a model at a size, before anything is loaded or run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vidattn.cli.arguments import BadArgument, positive, size

if TYPE_CHECKING:
    from vidattn.cli.full_size import Denoiser, Stack

_EXAMPLES = """\
examples:
  vidattn report flux --size 2048
  vidattn report wan-14b --size 720x1280 --frames 81 --pattern radial:decay=0.2 --device h100
  vidattn report emoji-flux --size 512 --pattern neighborhood:window=17
  vidattn report path/to/pipeline --size 1024

MODEL is a well-known model (flux, qwen-image, sd3.5-large, sdxl, wan-1.3b, wan-14b, hunyuan-video,
cogvideox-5b), a demo model, or a folder that diffusers saved; only configs are read. The times are those of
attention alone, predicted by the cost model; the output says whether that was fitted to measurements or is an
estimate. Dense means what PyTorch takes by itself.
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "report",
        help="grid, density and predicted attention time of a model at a size",
        description="Say what a pattern will do in a model at a size, before anything is loaded.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="well-known or demo model, or a folder")
    add("--size", type=size, help="pixels, 2048 or 720x1280 (height x width; default: the model's own)")
    add("--frames", type=positive, help="frames of a clip (default: the model's own)")
    add("--batch", type=positive, default=1, help="pictures or clips at a time (default 1)")
    add("--pattern", default="neighborhood", help="preset or text form (default neighborhood)")
    add("--device", default="auto", help="h100, h200, a100, cuda or cpu; auto is this machine's")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--backend", help="who computes the pattern (default triton on GPUs, torch on CPUs)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the prediction."""
    from vidattn.backends.cost import Times
    from vidattn.cli.full_size import find
    from vidattn.cli.generation import choose_device

    model = find(arguments.model)
    pixels = arguments.size or model.native
    for side in pixels:
        if side % (model.pixels * max(stack.down for stack in model.stacks)):
            raise BadArgument("--size", f"{pixels[0]}x{pixels[1]}: must be multiples of {model.pixels}")
    if arguments.frames and not model.frames:
        raise BadArgument("--frames", f"{arguments.model} makes pictures")
    frames = arguments.frames or model.native_frames
    try:
        device = choose_device("auto") if arguments.device == "auto" else arguments.device
        times = Times.on(device)
    except ValueError as error:
        raise BadArgument("--device", str(error)) from error
    print(f"model     {model.about}")
    clip = f", {frames} frames" if model.frames else ""
    print(f"size      {pixels[0]}x{pixels[1]} pixels{clip}, {model.forwards} forward(s) a step")
    _predict(arguments, model, [model.layout(s, pixels, frames) for s in model.stacks], times)


def _predict(arguments: argparse.Namespace, model: Denoiser, layouts: list[Any], times: Any) -> None:
    """The lines of every stack, and their sum."""
    from vidattn.backends import pays
    from vidattn.backends.cost import Work
    from vidattn.cli.patterns import read_pattern

    backend = arguments.backend or ("torch" if times.device == "cpu" else "triton")
    totals = {"dense": 0.0, "sparse": 0.0}
    for stack, layout in zip(model.stacks, layouts, strict=True):
        native = tuple(side // model.pixels // stack.down for side in model.native)
        pattern = read_pattern(arguments.pattern, layout.grid, model.kind, native, "--pattern")  # type: ignore[arg-type]
        shape = _shape(arguments, stack, times.device)
        dense = times.seconds("dense", Work.dense(layout, shape), shape.dtype)
        sparse = times.seconds(backend, Work.sparse(pattern, layout, shape), shape.dtype)
        if sparse is None:
            raise BadArgument("--backend", f"{backend!r}: there is no prediction for it on {times.device}")
        text = f" + {layout.text_tokens} text tokens" if layout.text_tokens else ""
        print(
            f"grid      {'x'.join(map(str, layout.grid))}{text}, {stack.layers} layers of {stack.heads} heads"
        )
        print(f"pattern   {pattern.to_text()}: density {pattern.density(layout):.4f}")
        gain = f"{dense / sparse:.2f} times as fast"
        print(f"a call    dense {pays.duration(dense)}, sparse {pays.duration(sparse)} by {backend}: {gain}")
        if sparse * pays.LEAST_GAIN > dense:
            print('          with min_tokens="auto" these layers stay dense')
            sparse = dense
        for name, seconds in (("dense", dense), ("sparse", sparse)):
            totals[name] += seconds * stack.layers * model.forwards
    dense, sparse = (pays.duration(totals[name]) for name in ("dense", "sparse"))
    print(f"a step    attention: dense {dense}, with the pattern {sparse}")
    print(f"source    {times.device}, {times.source('dense', backend)}: {times.about}")


def _shape(arguments: argparse.Namespace, stack: Stack, device: str) -> Any:
    import torch

    from vidattn.backends.cost import Shape

    name = arguments.dtype
    if name == "auto":
        name = "float32" if device == "cpu" else "bfloat16"
    return Shape(arguments.batch, stack.heads, stack.head_dim, getattr(torch, name))
