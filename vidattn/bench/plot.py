"""The plot of cost against tokens, log-log."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def curves(rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """For each way and pattern (tokens, microseconds) by tokens: forward, per item, head and 64 numbers of
    head size, so that models compare.
    """
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        if row["pass"] != "forward" or "ms" not in row:
            continue
        share = 64 / math.prod(row["shape"])
        found[f"{row['way']} {row['pattern']}"].append((row["tokens"], 1e3 * row["ms"] * share))
    return {name: sorted(points) for name, points in found.items()}


def draw(records: Iterable[dict[str, Any]], path: Path) -> Path:
    """Save the plot of some records (what ``record.save`` wrote).

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no record has a forward time.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'vidattn[bench]'") from error
    records = list(records)
    lines = curves(row for record in records for row in record["rows"])
    if not lines:
        raise ValueError("no forward time in these results")
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name, points in sorted(lines.items()):
        dense = name.startswith("sdpa")
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=2.5 if dense else 1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="microseconds a head, for a head size of 64")
    axes.set_title(", ".join(dict.fromkeys(f"{r['device']}, {r.get('dtype', '')}" for r in records)))
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize="x-small", ncols=1 + len(lines) // 24)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
