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
    head = loading_lines(catalog, order)
    options = "".join(f", {key}={value!r}" for key, value in order.patch_options().items())
    arguments = "\n".join(f"        {key}={value!r}," for key, value in call.items())
    frames = order.frames is not None
    return f"""{head}
with vidattn.patched(pipe, "{order.pattern.to_text()}"{options}):
    {"frames" if frames else "image"} = pipe(
{arguments}
        generator=torch.Generator("cpu").manual_seed({order.seed}),
    ).{"frames[0]" if frames else "images[0]"}
"""


def loading_lines(catalog: Catalog, order: Order, more: str = "import vidattn") -> str:
    """The lines that load the order's model as ``pipe``; ``more`` is one more import."""
    imports = ["import torch", "from diffusers import DiffusionPipeline", more]
    path = f"path = {order.model!r}"
    if order.model in demo_models.shipped():
        imports.append("from vidattn import demo_models")
        path = f"path = demo_models.shipped()[{order.model!r}].path"
    return "\n".join(
        [
            *sorted(imports, key=lambda line: (line.startswith("from"), line)),
            "",
            path,
            f"pipe = DiffusionPipeline.from_pretrained(path, dtype={catalog.dtype}, use_safetensors=True)",
            f'pipe = pipe.to("{catalog.device}")',
        ]
    )
