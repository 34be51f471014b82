"""Writes the table of the cost model, ``vidattn/backends/cost.json``: times per unit of work, by device.

    python -m benchmarks.fit

Devices with committed results (``benchmarks/results/attention_*.json``, forward) are fitted to them, by least
squares of the relative error, no time negative. For the others there are estimates, see ``ESTIMATES``.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RESULTS
from vidattn.backends.cost import TABLE, Shape, Work
from vidattn.bench.record import table
from vidattn.layout import TokenLayout
from vidattn.patterns import from_text

UNITS = tuple(field.name for field in fields(Work))
WAYS = {"sdpa-flash": "dense", "sdpa-cudnn": "cudnn"}
"""Ways of the benchmarks that the table has under another name; "dense" is what PyTorch takes by itself."""
DEVICES = ("h100", "h200", "a100")
"""Cards that have an entry of their own, as their names contain it."""


def _rates(at_128: float, at_64: float, call: float) -> dict[str, Any]:
    """Times per unit from TFLOP/s at head sizes of 128 and 64: a time per pair and one per operation."""
    pair_128, pair_64 = 512 / at_128 / 1e12, 256 / at_64 / 1e12
    flop = (pair_128 - pair_64) / 256
    rates = {"calls": call, "pairs": pair_64 - 256 * flop, "flops": flop}
    return {"source": "estimate", "rates": {"bfloat16": rates}}


def _card(scale: float, about: str) -> dict[str, Any]:
    """The entry of a card that runs at ``scale`` times the H100's rates."""
    ways = {
        "dense": _rates(350 * scale, 312 * scale, 20e-6),
        "cudnn": _rates(640 * scale, 491 * scale, 20e-6),
        "triton": _rates(390 * scale, 330 * scale, 60e-6),
        # tensor operations: three passes over scores in float32, gathers, a launch for each
        "torch": _rates(30 * scale, 30 * scale, 1e-3),
    }
    return {"about": about, "ways": ways}


H100 = (
    "rates of one H100, bfloat16, head sizes of 128 and 64: PyTorch's default (FlashAttention-2) 350 and 312"
    " TFLOP/s, cuDNN 640 and 491, a prototype of the box kernel 390 and 330 over visited pairs; the torch"
    " backend's are guessed"
)
ESTIMATES = {
    "h100": _card(1.0, H100),
    "h200": _card(1.0, H100 + "; the H200 has the same units"),
    "a100": _card(0.6, H100 + "; times 0.6, as FlashAttention-2 reaches 200 to 220 TFLOP/s on an A100"),
    "cuda": _card(0.3, H100 + "; times 0.3, for a card that is not known: only ratios mean something"),
}
"""Times where nothing was measured with this package's kernels."""


# ---------------------------------------------------------------------- fitting
def work_of(row: dict[str, Any], dtype: str) -> Work:
    """The work of a result's call."""
    shape = Shape(*row["shape"], dtype=getattr(torch, dtype))
    layout = TokenLayout(tuple(row["grid"]), *row["text"])
    if row["way"] in WAYS:
        return Work.dense(layout, shape)
    return Work.sparse(from_text(row["pattern"]), layout, shape)


def fit(samples: list[tuple[Work, float]]) -> dict[str, float]:
    """Seconds per unit, none negative, that make the relative errors small; units that do not help are left
    out.
    """
    work = np.array([astuple(one) for one, _ in samples])
    seconds = np.array([time for _, time in samples])
    used = [i for i in range(len(UNITS)) if work[:, i].any()]
    while True:
        scaled = work[:, used] / seconds[:, None]
        size = np.abs(scaled).max(0)  # units differ by many orders of magnitude
        rates = np.linalg.lstsq(scaled / size, np.ones(len(seconds)), rcond=None)[0] / size
        worst = int(np.argmin(rates * size))
        if rates[worst] >= 0 or len(used) == 1:
            return {UNITS[i]: float(rate) for i, rate in zip(used, rates, strict=True) if rate > 0}
        used.pop(worst)


def device_class(record: dict[str, Any]) -> str:
    """The table's entry that a record belongs to."""
    if "threads" in record:
        return "cpu"
    name = record["device"].lower().replace(" ", "")
    return next((card for card in DEVICES if card in name), "cuda")


def gather(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], list[tuple[Work, float]]]:
    """(work, seconds) of every forward, by device class, way and dtype."""
    found: dict[tuple[str, str, str], list[tuple[Work, float]]] = defaultdict(list)
    for record in records:
        for row in record["rows"]:
            if "ms" in row and row["pass"] == "forward" and row["pattern"] != "linear":
                key = device_class(record), WAYS.get(row["way"], row["way"]), record["dtype"]
                # a CPU's entry is the time of one thread
                time = row["ms"] / 1e3 * record.get("threads", 1)
                found[key].append((work_of(row, record["dtype"]), time))
    return found


def build(paths: Iterable[Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The table, and for each fit how far it is from what was measured."""
    records = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    made: dict[str, Any] = json.loads(json.dumps(ESTIMATES))
    errors = []
    for (device, way, dtype), samples in sorted(gather(records.values()).items()):
        if len(samples) < len(UNITS):
            continue
        rates = fit(samples)
        entry = made.setdefault(device, {"about": "", "ways": {}})
        names = [name for name, record in records.items() if device_class(record) == device]
        card = next(record["device"] for record in records.values() if device_class(record) == device)
        entry["about"] = f"{card}; {', '.join(names)}"
        # ways that were not measured stay estimates, and are said to be
        if entry["ways"].get(way, {}).get("source") != "fitted":
            entry["ways"][way] = {"source": "fitted", "rates": {}}
        entry["ways"][way]["rates"][dtype] = rates
        off = [abs(work.seconds(rates) / time - 1) for work, time in samples]
        errors.append(
            {
                "device": device,
                "way": way,
                "dtype": dtype,
                "calls": len(samples),
                "median error": statistics.median(off),
                "greatest error": max(off),
            }
        )
    return {name: made[name] for name in sorted(made)}, errors


def main() -> None:
    """Write the table and print how well it fits."""
    made, errors = build(sorted(RESULTS.glob("attention_*.json")))
    TABLE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(table(errors, ["device", "way", "dtype", "calls", "median error", "greatest error"]))


if __name__ == "__main__":
    main()
