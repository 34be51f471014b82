"""Checkpoints: one safetensors file, replaced in one move, so that a kill at any time leaves a whole one.

Randomness and the place in the data follow from the step's number and the seed, so the step is all there is
to save of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidattn.distill.average import Average

FILE = "checkpoint.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside ``path``, make sure that it is on the disk, and move it into place."""
    partial = path.with_suffix(".partial")
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, partial, metadata=metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, nn.Parameter],
    average: Average,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> None:
    """Write the state after ``step`` updates."""
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensors[f"weight:{name}"], tensors[f"average:{name}"] = weight, average.values[name]
        for key, value in optimizer.state.get(weight, {}).items():
            tensors[f"{key}:{name}"] = value
    write_tensors(folder / FILE, tensors, {"step": str(step), "settings": json.dumps(settings)})


def resume(
    folder: Path,
    weights: Mapping[str, nn.Parameter],
    average: Average,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> int:
    """Load the folder's checkpoint, if there is one.

    Returns:
        How many updates have been made; 0 without a checkpoint.

    Raises:
        ValueError: the checkpoint is of a run with other settings; names them.
    """
    path = folder / FILE
    if not path.is_file():
        return 0
    with safe_open(str(path), framework="pt") as opened:
        metadata = opened.metadata()
    before = json.loads(metadata["settings"])
    changed = sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k))
    if changed:
        raise ValueError(
            f"{path} is of a run with other {', '.join(changed)}; give another output, or the same"
        )
    tensors = load_file(path)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[f"weight:{name}"])
            average.values[name].copy_(tensors[f"average:{name}"])
    _load_optimizer(optimizer, weights, tensors)
    return int(metadata["step"])


def _load_optimizer(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    for name, weight in weights.items():
        state = {}
        for full, value in tensors.items():
            key, _, of = full.partition(":")
            if of == name and key not in ("weight", "average"):
                # AdamW counts its steps on the CPU, unless it is fused
                state[key] = value.clone() if value.ndim == 0 else value.to(weight.device, copy=True)
        optimizer.state[weight] = state
