"""Short programs that show one thing each: ``python -m demos.scripts.NAME --help``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from vidattn import demo_models


def load(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline on its device, and call arguments that suit it.

    Args:
        name: a demo model, a local folder in diffusers' format, or a hub id.
    """
    from diffusers import DiffusionPipeline

    found = demo_models.shipped().get(name)
    if found is None and Path(name).is_dir():
        found = demo_models.read(Path(name))
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    source, local = (str(found.path), True) if found else (name, False)
    pipe = DiffusionPipeline.from_pretrained(source, local_files_only=local, torch_dtype=dtype)
    return pipe.to("cuda" if on_gpu else "cpu"), dict(found.defaults) if found else {}


def arguments(text: str | None, model: str, output: str, argv: list[str] | None, **more: Any) -> Any:
    """The command line that these programs share.

    Args:
        text: what the program does, for ``--help``.
        model: default of ``--model``.
        output: default of ``--output``.
        argv: the words; None are the program's own.
        **more: further options with their defaults, whose kinds are theirs.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=model, help="demo model, local folder or hub id")
    parser.add_argument("--prompt", default="a red fox in the snow, photograph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="folder for finished stages; a killed run goes on")
    parser.add_argument("--output", type=Path, default=Path(output))
    for name, default in more.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    return parser.parse_args(argv)


def said(stage: Any, index: int, total: int, images: list[Any]) -> None:
    """A line for each finished stage."""
    density = "" if stage.density is None else f", density {stage.density:.4f}"
    print(
        f"stage {index + 1}/{total}: {stage.height}x{stage.width}, {stage.seconds:.1f} s{density}", flush=True
    )
