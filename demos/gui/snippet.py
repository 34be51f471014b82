"""The Python lines that make a result again."""

from __future__ import annotations

from typing import Any

from vidattn import demo_models

from .catalog import Catalog
from .order import Order


def python_lines(catalog: Catalog, order: Order, call: dict[str, Any]) -> str:
    """A program that gives the patched picture of the order, pixel for pixel, on the same machine.

    Args:
        catalog: where the model comes from, and the device and dtype.
        order: what was asked for.
        call: arguments of the pipeline's call, from ``Order.call``.
    """
    options = "".join(f", {key}={value!r}" for key, value in order.patch_options().items())
    arguments = "\n".join(f"        {key}={value!r}," for key, value in call.items())
    frames = order.frames is not None
    return f"""\
import torch
import vidattn
from diffusers import DiffusionPipeline
{_model(order.model)}
pipe = DiffusionPipeline.from_pretrained(path, dtype={catalog.dtype}, use_safetensors=True)
pipe = pipe.to("{catalog.device}")
with vidattn.patched(pipe, "{order.pattern.to_text()}"{options}):
    {"frames" if frames else "image"} = pipe(
{arguments}
        generator=torch.Generator("cpu").manual_seed({order.seed}),
    ).{"frames[0]" if frames else "images[0]"}
"""


def _model(name: str) -> str:
    if name in demo_models.shipped():
        return f"from vidattn import demo_models\n\npath = demo_models.shipped()[{name!r}].path"
    return f"\npath = {name!r}"
