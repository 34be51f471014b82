"""``vidattn generate``: a picture or a clip from a prompt, with a patched pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vidattn.cli.arguments import number, positive, size, whole

_EXAMPLES = """\
examples:
  vidattn generate --prompt "two 3d bicycle on a yellow background" --compare dense
  vidattn generate --prompt "noto cat" --size 384x512 --pattern neighborhood:window=17x17 --seed 3
  vidattn generate --model path/to/pipeline --prompt "a red fox" --pattern none --steps 30
  vidattn generate --prompt "noto cat" --upscale 1024 --checkpoint out/run --output out/cat.png
  vidattn generate --model emoji-wan --prompt "noto cat moving left" --frames 17 --output cat.gif

--model takes a folder saved by diffusers, a hub id, or the name of a demo model (see vidattn models).
With --compare dense the same seed also runs unpatched, and image-dense.png and image-difference.png
are written beside image.png. The settings are inside the PNG, as text chunks.
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "generate",
        help="a picture or a clip from a prompt, with a patched pipeline",
        description="Generate a picture or a clip from a prompt with a patched pipeline.",
        epilog=_EXAMPLES,
    )
    _add_what(parser)
    _add_pattern(parser)
    add = parser.add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--compare", choices=("none", "dense"), default="none", help="also run unpatched and measure")
    add("--output", type=Path, help="PNG; GIF, PNG or MP4 for clips (default image.png, clip.gif)")
    add("--upscale", type=size, help="enlarge to these pixels, in stages that start from the picture before")
    add(
        "--stages",
        type=positive,
        metavar="N",
        help="stages after the first (default: each doubles the sides)",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="keep finished stages; a killed run goes on from them",
    )
    add("--report", action="store_true", help="print what ran in every layer")
    parser.set_defaults(run=run)


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", required=True)
    add("--negative-prompt", help="default: the model's own")
    add("--model", default="emoji-flux", help="folder, hub id or demo model (default emoji-flux)")
    add("--size", type=size, help="pixels, 512 or 384x512 (height x width; default: the model's own)")
    add("--frames", type=positive, help="frames of a clip, for video models (default: the model's own)")
    add("--fps", type=positive, default=8, help="frames a second of the saved clip (default 8)")
    add("--steps", type=positive, help="denoising steps (default: the model's own)")
    add("--seed", type=whole, default=0, help="default 0")
    add("--guidance", type=number, help="guidance scale (default: the model's own)")
    add("--max-sequence-length", type=positive, help="text tokens (default: the model's own)")


def _add_pattern(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--pattern",
        default="neighborhood",
        help="preset, text form as neighborhood:window=17x17, JSON recipe, or none (default neighborhood)",
    )
    add("--dense-steps", type=whole, default=0, metavar="N", help="run the first N steps dense")
    add("--dense-last-steps", type=whole, default=0, metavar="N", help="run the last N steps dense")
    add(
        "--dense-layers",
        default="",
        metavar="GLOBS",
        help="layers that stay dense: names, numbers, comma-separated",
    )
    add(
        "--min-tokens",
        type=whole,
        metavar="N",
        help="least tokens for sparse attention (default: 1024 on CPU)",
    )
    add("--weights", metavar="FILE", help="weights trained for the pattern (.safetensors)")
    add("--backend", default="auto", help="who computes the attention (see vidattn doctor; default auto)")


def run(arguments: argparse.Namespace) -> None:
    """Load, generate, save and print what ran."""
    # The heavy imports wait until the arguments are known to be well formed.
    from vidattn.cli import generation, outcome, upscaling

    generation.check_names(arguments)
    upscaling.check(arguments)
    device = generation.choose_device(arguments.device)
    dtype = generation.choose_dtype(arguments.dtype, device)
    generation.quiet_libraries()
    model = generation.load(arguments.model, device, dtype)
    call = generation.call_arguments(model, arguments)
    output = outcome.check_path(arguments.output, generation.moving(model))
    result = outcome.Outcome(arguments, model, call, f"{device}, {str(dtype).removeprefix('torch.')}")
    layers = ""
    if arguments.pattern != "none":
        result.sparse, result.facts, layers = _patched(model, call, arguments)
    if arguments.pattern == "none" or arguments.compare == "dense":
        if arguments.upscale:
            result.dense, facts, _ = upscaling.run(model, call, arguments, patched=False)
            result.facts = result.facts or facts
        else:
            result.dense = generation.generate(model, call, arguments.seed, "dense")
    for name, text in result.summary(result.save(output)):
        print(f"{name:<9}{text}")
    if arguments.report and result.sparse:
        print(layers)


def _patched(model: Any, call: dict[str, Any], arguments: argparse.Namespace) -> tuple[Any, list, str]:
    """The patched run: pictures, lines about what ran, and the whole report."""
    from vidattn.cli import generation, upscaling

    if arguments.upscale:
        return upscaling.run(model, call, arguments, patched=True)
    with generation.patched(model, arguments) as handle:
        run = generation.generate(model, call, arguments.seed, "patched")
        return run, *generation.facts(handle.report())
