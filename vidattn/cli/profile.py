"""``vidattn profile``: where the time of a patched pipeline goes on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vidattn.cli.arguments import check_output, positive, size, whole

_EXAMPLES = """\
examples:
  vidattn profile --size 512
  vidattn profile --model path/to/pipeline --size 2048 --pattern radial --steps 2
  vidattn profile --pattern none --trace trace.json

The pipeline runs once to warm up, then with PyTorch's profiler. --pattern none profiles it as it is. --trace
saves the whole profile for chrome://tracing or Perfetto.
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "profile",
        help="where the time of a patched pipeline goes on this machine",
        description="Run a patched pipeline with PyTorch's profiler, and print where its time goes.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("--model", default="emoji-flux", help="folder, hub id or demo model (default emoji-flux)")
    add("--prompt", default="noto cat on a red background")
    add("--size", type=size, help="pixels, 512 or 384x512 (height x width; default: the model's own)")
    add("--frames", type=positive, help="frames of a clip, for video models (default: the model's own)")
    add("--steps", type=positive, default=2, help="denoising steps (default 2)")
    add("--pattern", default="neighborhood", help="preset, text form, recipe, or none (default neighborhood)")
    add(
        "--min-tokens", type=whole, metavar="N", help="least tokens for sparse attention (default: automatic)"
    )
    add("--backend", default="auto", help="who computes the attention (default auto)")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--trace", type=Path, metavar="FILE", help="save the profile as JSON")
    # what `vidattn generate` also takes
    parser.set_defaults(run=run, negative_prompt=None, guidance=None, max_sequence_length=None, weights=None)
    parser.set_defaults(dense_steps=0, dense_last_steps=0, dense_layers="", output=None)


def run(arguments: argparse.Namespace) -> None:
    """Load, warm up, profile and print."""
    # The heavy imports wait until the arguments are known to be well formed.
    from contextlib import nullcontext

    from vidattn.cli import generation, profiling

    generation.check_names(arguments)
    if arguments.trace:
        check_output(arguments.trace, (".json",))
    device = generation.choose_device(arguments.device)
    dtype = generation.choose_dtype(arguments.dtype, device)
    generation.quiet_libraries()
    model = generation.load(arguments.model, device, dtype)
    call = generation.call_arguments(model, arguments)
    with nullcontext() if arguments.pattern == "none" else generation.patched(model, arguments) as handle:
        found = profiling.profile(model.pipe, call, device)
        report = "" if handle is None else str(handle.report())
    print(
        f"{device}, {str(dtype).removeprefix('torch.')}, pattern {arguments.pattern}, {arguments.steps} steps"
    )
    for line in profiling.lines(found):
        print(line)
    if report:
        print(report)
    if arguments.trace:
        found.profile.export_chrome_trace(str(arguments.trace))
        print(f"trace {arguments.trace}")
