"""FLUX.1 and its ControlNets: joint attention, text first; the grid is in the values of ``img_ids``.

Kontext appends reference images behind the target: those tokens see all and are seen by all, like text.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Layer, Reading
from vidattn.patches.values import once_per_tensor

Target = tuple[int, int] | str
"""(height, width) of the leading raster, or why there is none."""


def joint_layers(model: nn.Module) -> Iterator[Layer]:
    """The attention of both stacks."""
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        for i, block in enumerate(getattr(model, stack)):
            yield Layer(f"{stack}.{i}.attn", block.attn)


def read_ids(model: nn.Module, arguments: Arguments) -> Reading:
    """The raster that leads ``img_ids``, behind the text; tokens behind it are references."""
    ids, image = arguments.get("img_ids"), arguments.get("hidden_states")
    text = arguments.get("encoder_hidden_states")
    if not (isinstance(ids, Tensor) and isinstance(image, Tensor) and isinstance(text, Tensor)):
        raise GridUnreadable("img_ids, hidden_states and encoder_hidden_states are needed to read the grid")
    if ids.shape[-2] != image.shape[1]:
        raise GridUnreadable(f"img_ids has {ids.shape[-2]} rows for {image.shape[1]} image tokens")
    target = raster_of(ids)
    if isinstance(target, str):
        raise GridUnreadable(target)
    references = image.shape[1] - target[0] * target[1]
    # a union ControlNet puts one token for its mode in front of the text
    before = text.shape[1] + (1 if getattr(model, "union", False) else 0)
    layout = TokenLayout((1, *target), text_before=before, text_after=references)
    return Reading(
        {0: layout}, f"{references} reference tokens see all and are seen by all" if references else ""
    )


def _find_target(ids: Tensor) -> Target:
    if ids.is_meta:
        return "img_ids holds no values (meta device)"
    table = (ids[0] if ids.ndim == 3 else ids).detach().cpu().double()
    if table.ndim != 2 or table.shape[1] < 3 or not len(table):
        return f"img_ids of shape {tuple(ids.shape)} is no table of positions"
    whole = bool((table[:, 0] == table[:, 0].round()).all())  # pictures are told apart by whole numbers
    tokens, table = len(table), table[: _leading(table[:, 0])]
    if not whole or (len(table) == 1 and tokens > 1):
        return "img_ids is no raster grid"
    width = _leading(table[:, 1])
    if len(table) % width:
        return "img_ids is no raster grid"
    # rows and columns need not count 0, 1, 2: interpolated positions, and bfloat16 ids beyond 256, are
    # rasters as well
    rows, columns = table[:, 1].reshape(-1, width), table[:, 2].reshape(-1, width)
    regular = (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    if not regular or not _rises(rows[:, 0]) or not _rises(columns[0]):
        return "img_ids is no raster grid"
    return len(table) // width, width


raster_of = once_per_tensor(_find_target)
"""The leading raster in a table of positions (tokens, axes), whose first axes are picture, row and column."""


def _leading(values: Tensor) -> int:
    """How many entries from the first on are equal."""
    other = (values != values[0]).nonzero()
    return int(other[0]) if len(other) else len(values)


def _rises(values: Tensor) -> bool:
    return len(values) == 1 or bool((torch.diff(values) >= 0).all() and values[-1] > values[0])


def native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    """1024 px."""
    return 64, 64


FAMILY = Family(
    "flux",
    ("FluxTransformer2DModel", "FluxControlNetModel"),
    "image",
    joint_layers,
    read_ids,
    native,
    timestep_scale=1000.0,
)
