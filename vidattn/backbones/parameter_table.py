"""Parameter counts next to the published ones: ``python -m vidattn.backbones.parameter_table``."""

from __future__ import annotations

import torch

from vidattn.backbones.options import parameters_of
from vidattn.backbones.registry import create_model, families


def counted(name: str) -> int:
    """Parameters of a model, built without memory for them."""
    with torch.device("meta"):
        return parameters_of(create_model(name))


def agrees(count: int, published: str) -> bool:
    """Whether a count is the published number, at the digits that were published: "13142760" or "27.90M".

    Example:
        >>> agrees(27_901_582, "27.90M"), agrees(27_911_582, "27.90M")
        (True, False)
    """
    if not published.endswith("M"):
        return count == int(published)
    decimals = len(published[:-1].partition(".")[2])
    return f"{count / 1e6:.{decimals}f}M" == published


def table() -> str:
    """All models as a Markdown table: parameters, the published number, the authors' files."""
    lines = ["| model | parameters | published | authors' files | paper |", "|---|---|---|---|---|"]
    for family in families():
        for name in family.configs:
            files = ", ".join(f"`{file}`" for file in family.checkpoints.get(name, ()))
            cells = [f"`{name}`", f"{counted(name):,}", family.parameters[name], files, family.paper]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
