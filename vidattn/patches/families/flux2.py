"""FLUX.2: joint attention, text first; ``img_ids`` has an axis for time in front of row and column, and one
for layers behind. Reference images follow the target with other times. With a key-value cache they stand in
front of it or are not queries at all: dense.
"""

from __future__ import annotations

from torch import nn

from vidattn.patches.families import Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families.flux import joint_layers, native, read_ids


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    mode = arguments.get("kv_cache_mode")
    if mode is not None:
        raise GridUnreadable(f"kv_cache_mode={mode!r}: references are cached")
    return read_ids(model, arguments)


FAMILY = Family(
    "flux2", ("Flux2Transformer2DModel",), "image", joint_layers, _read, native, timestep_scale=1000.0
)
