"""The plot of picture quality: PSNR against density, a line a pattern.

python -m benchmarks.quality_plot benchmarks/results/quality_emoji_flux_256.json docs/quality/psnr.png
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vidattn.patterns import from_text

SIZES = {"neighborhood": "window", "sliding": "base", "disc": "radius", "groups": "size"}
"""The parameter that grows along a line."""


def kind(text: str) -> str:
    """A pattern's text without the size that changes along its line: one line of the plot."""
    pattern = from_text(text)
    size = SIZES.get(pattern.name)
    name, _, rest = pattern.to_text().partition(":")
    others = [part for part in rest.split(",") if part.partition("=")[0] not in ("", size, "stride")]
    if "stride=" in rest:
        others.append("strided")
    return " ".join([name, *others])


def lines(rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(density, PSNR) of each kind of pattern, by density."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if not row["pattern"].startswith("dense"):
            found[kind(row["pattern"])].append((row["density"], row["PSNR"]))
    return {name: sorted(points) for name, points in found.items()}


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Save the plot; anchors (dense with another seed, and in another precision) are dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in sorted(lines(rows).items()):
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    top = axes.get_ylim()[1]
    for row in rows:
        if not row["pattern"].startswith("dense"):
            continue
        if row["PSNR"] < top:
            axes.axhline(row["PSNR"], ls="--", color="gray", lw=1, label=row["pattern"])
        else:  # rounding noise lies far above, and would flatten the lines
            axes.set_title(f"{row['pattern']}: {row['PSNR']:.1f} dB", fontsize="medium")
    axes.set(
        xlabel="density: share of the pairs that is computed", ylabel="PSNR against dense, dB", xlim=(0, None)
    )
    axes.grid(True, alpha=0.2)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def main() -> None:
    """Draw a saved result."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m benchmarks.quality_plot RESULTS.json PICTURE.png")
    record = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("drawn", draw(record["rows"], Path(sys.argv[2])))


if __name__ == "__main__":
    main()
