"""Predicts how long an attention call takes, from counted work and a small table of times per unit of work.

The table (``cost.json``) has an entry for each class of device. ``benchmarks/fit.py`` writes it: fitted to
committed results where there are some, otherwise an estimate that says so.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from vidattn.layout import TokenLayout
from vidattn.patterns import Pattern, PerHead

TABLE = Path(__file__).with_name("cost.json")


@dataclass(frozen=True)
class Shape:
    """What else decides the time of a call.

    Args:
        batch: items.
        heads: query heads.
        head_dim: of queries, keys and values.
        dtype: of the inputs.
    """

    batch: int = 1
    heads: int = 16
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Work:
    """What a call has to do, in units that each take some time.

    Args:
        calls: 1.
        tiles: query tiles, per item.
        pairs: (query, key) pairs that are computed, over items and heads.
        flops: of both products over those pairs.
        elements: numbers that are read, gathered or written.
    """

    calls: float
    tiles: float
    pairs: float
    flops: float
    elements: float

    @staticmethod
    def dense(layout: TokenLayout, shape: Shape) -> Work:
        """Every query against every key."""
        tokens = layout.tokens
        return _work(1.0, 0.0, float(tokens) ** 2, 4.0 * tokens, shape)

    @staticmethod
    def sparse(pattern: Pattern, layout: TokenLayout, shape: Shape) -> Work:
        """What the pattern's plan visits, text included; of PerHead the sum over its patterns."""
        if isinstance(pattern, PerHead):
            works = [_alike(p, layout, shape) for p in pattern.patterns]
            shares = [len(pattern.heads(i)) / len(pattern.assign) for i in range(len(works))]
            totals = [sum(map(math.prod, zip(column, shares, strict=True))) for column in _columns(works)]
            return Work(float(sum(share > 0 for share in shares)), *totals[1:])
        return _alike(pattern, layout, shape)

    def seconds(self, rates: Mapping[str, float]) -> float:
        """The time, with seconds per unit by the names of the fields."""
        return sum(float(getattr(self, f.name)) * rates.get(f.name, 0.0) for f in fields(self))


def _columns(works: list[Work]) -> list[tuple[float, ...]]:
    return list(zip(*map(astuple, works), strict=True))


def _work(calls: float, tiles: float, pairs: float, moved: float, shape: Shape) -> Work:
    """From counts per item and head; ``moved`` counts rows of head_dim numbers."""
    lanes = shape.batch * shape.heads
    return Work(
        calls,
        tiles * shape.batch,
        pairs * lanes,
        4.0 * pairs * lanes * shape.head_dim,
        moved * lanes * shape.head_dim,
    )


def _alike(pattern: Pattern, layout: TokenLayout, shape: Shape) -> Work:
    tiles, pairs, keys = _counts(pattern, layout)
    text, tokens = layout.text_tokens, layout.tokens
    # text is one more box of every tile, and its own queries see all
    pairs += text * (layout.grid_tokens + tokens)
    keys += text * tiles + (tokens if text else 0)
    return _work(1.0, tiles, pairs, 2.0 * tokens + 2.0 * keys, shape)


@functools.lru_cache(maxsize=256)
def _counts(pattern: Pattern, layout: TokenLayout) -> tuple[float, float, float]:
    """Tiles, pairs and keys that they visit, on the grid."""
    try:
        plan = pattern.plan(layout)
    except (NotImplementedError, ValueError):  # chosen from the data: its share of the pairs is known
        tiles, share = layout.grid_tokens / 64, pattern.density(layout)
        return tiles, share * float(layout.grid_tokens) ** 2, tiles * share * layout.grid_tokens
    keys = sum(math.prod(box.size) for tile in plan.tiles for box in tile.boxes)
    return float(len(plan.tiles)), float(plan.visited_pairs), float(keys)


# ---------------------------------------------------------------------- times
@functools.cache
def table() -> dict[str, Any]:
    """The times of each class of device."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Times:
    """The times per unit on one class of device.

    Args:
        device: the class, a key of the table.
        about: what they were fitted to, or derived from.
    """

    device: str
    about: str

    @staticmethod
    def on(device: torch.device | str) -> Times:
        """Those of a device, or of a class by its name.

        Raises:
            ValueError: an unknown class.
        """
        known = table()
        name = device if isinstance(device, str) and device in known else _class_of(device)
        return Times(name, known[name]["about"])

    def source(self, *ways: str) -> str:
        """ "fitted" when the times of all these ways are, else "estimate"."""
        known = table()[self.device]["ways"]
        fitted = all(known[way]["source"] == "fitted" for way in ways if way in known)
        return "fitted" if fitted else "estimate"

    def seconds(self, way: str, work: Work, dtype: torch.dtype) -> float | None:
        """Predicted time of a way ("dense", "cudnn" or a backend), None where the table does not know it.

        On a CPU all threads of PyTorch are taken to share the work evenly.
        """
        known = table()[self.device]["ways"].get(way)
        if known is None:
            return None
        rates = known["rates"]
        name = str(dtype).removeprefix("torch.")
        # float16 runs like bfloat16; what else is missing like the first entry
        like = {"float16": "bfloat16", "float64": "float32"}.get(name, name)
        found = rates.get(name) or rates.get(like) or next(iter(rates.values()))
        threads = torch.get_num_threads() if self.device == "cpu" else 1
        return work.seconds(found) / threads


def _class_of(device: torch.device | str) -> str:
    """The table's class for a device: a card that it names, else "cuda" or "cpu"."""
    known = table()
    if isinstance(device, str) and device.partition(":")[0] not in ("cpu", "cuda", "mps", "xpu", "meta"):
        raise ValueError(f"device {device!r}: must be one of {', '.join(known)}")
    one = torch.device(device)
    if one.type != "cuda":
        return "cpu" if one.type == "cpu" else "cuda"
    name = _card(one)
    return next((key for key in known if key in name), "cuda")


@functools.cache
def _card(device: torch.device) -> str:
    """The name of a card as the table writes them: lower case, no spaces; "" where there is none to ask."""
    if not torch.cuda.is_available():
        return ""
    return torch.cuda.get_device_name(device).lower().replace(" ", "")
