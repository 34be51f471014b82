"""How many rows and columns a kernel takes at a time, from a table that was made offline; never searched for
at run time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources


@dataclass(frozen=True)
class Tiling:
    """Tokens of a tile of rows and of a box of columns, and how a kernel with them is launched."""

    rows: int
    columns: int
    warps: int
    stages: int


@lru_cache(maxsize=1)
def table() -> list[dict]:
    """The entries of ``tiles.json``, in the order in which they are tried."""
    return json.loads(resources.files(__package__).joinpath("tiles.json").read_text("utf-8"))["entries"]


@lru_cache(maxsize=256)
def choose(kernel: str, device: str, bits: int, size: int) -> Tiling:
    """The first entry that fits.

    Args:
        kernel: "forward", "query" (gradient of the queries) or "key" (of keys and values).
        device: the device's class, as "sm_90".
        bits: of an element, 16 or 32.
        size: the greater of the padded head sizes of keys and values.
    """
    for entry in table():
        fits = entry["kernel"] == kernel and entry["device"] in (device, "any")
        if fits and entry["bits"] == bits and size <= entry["size"]:
            return Tiling(entry["rows"], entry["columns"], entry["warps"], entry["stages"])
    raise ValueError(f"no tile for kernel={kernel!r}, device={device!r}, bits={bits}, head size {size}")
