"""``vidattn doctor``: what is installed, which device there is, which backends can run and why not."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import metadata
from typing import Any

_EXAMPLES = """\
examples:
  vidattn doctor                    print it
  vidattn doctor > doctor.txt       for a bug report
"""
REQUIRED = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "tqdm",
)
OPTIONAL = {"gradio": "demo", "matplotlib": "bench", "xformers": "xformers", "timm": "timm", "peft": "dev"}
"""Optional packages, and the extra that installs each."""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "doctor",
        help="what is installed, which backends can run and why not",
        description="Say what is installed, which device there is, and which backends can run.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the findings."""
    del arguments
    for title, lines in (
        ("system", _system()),
        ("device", _devices()),
        ("packages", _packages()),
        ("backends", _backends()),
        ("demo models", _models()),
    ):
        print(title)
        for line in lines:
            print(f"  {line}")


def _system() -> list[str]:
    import vidattn

    return [
        f"vidattn {vidattn.__version__} in {os.path.dirname(vidattn.__file__)}",
        f"python {platform.python_version()} ({sys.executable})",
        f"{platform.platform()}, {os.cpu_count()} cores",
    ]


def _devices() -> list[str]:
    import torch

    lines = [f"cpu: {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            memory = card.total_memory / 2**30
            lines.append(f"cuda:{index}: {card.name}, sm_{card.major}{card.minor}, {memory:.0f} GiB")
    elif torch.version.cuda is None and torch.version.hip is None:
        lines.append(f"no GPU: this build of torch ({torch.__version__}) has no CUDA")
    else:
        lines.append("no GPU: torch has CUDA, but finds no device or driver")
    return lines


def _packages() -> list[str]:
    lines = []
    for name in REQUIRED:
        lines.append(f"{name:<14}{_version(name) or 'missing: pip install vidattn brings it'}")
    for name, extra in OPTIONAL.items():
        hint = f"not installed (optional): pip install 'vidattn[{extra}]'"
        lines.append(f"{name:<14}{_version(name) or hint}")
    return lines


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _backends() -> list[str]:
    from vidattn import backends

    lines = []
    for name, reasons in backends.reasons().items():
        lines.append(f"{name:<8}{'can run' if not reasons else 'cannot run: ' + '; '.join(reasons)}")
    return lines


def _models() -> list[str]:
    from vidattn import demo_models

    found = demo_models.shipped()
    return [f"{name} ({folder.pipeline})" for name, folder in found.items()] or ["none in this installation"]
