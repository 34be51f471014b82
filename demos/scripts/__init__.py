"""Short programs that show one thing each: ``python -m demos.scripts.NAME --help``."""

from __future__ import annotations

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
