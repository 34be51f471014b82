"""What the kernels are told about a pattern, made once per pattern, grid and device."""

from __future__ import annotations

import torch

from vidattn.backends.triton_windows import window_visits
from vidattn.kernels.visits import Visits
from vidattn.layout import Grid
from vidattn.patterns import Full, Groups, Pattern, SlidingTile
from vidattn.patterns.window import WindowPattern


def plannable(pattern: Pattern) -> bool:
    return isinstance(pattern, (Full, Groups, SlidingTile, WindowPattern))


def static_visits(
    pattern: Pattern, grid: Grid, rows: int, columns: int, inverted: bool, device: torch.device
) -> Visits:
    return window_visits(pattern, grid, rows, columns, inverted, device)
