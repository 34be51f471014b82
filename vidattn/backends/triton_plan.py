"""What the kernels are told about who sees whom; static patterns once per grid, tiling and device."""

from __future__ import annotations

import torch

from vidattn.backends.problem import Problem
from vidattn.backends.triton_lists import LISTED, dynamic_visits, list_visits
from vidattn.backends.triton_windows import is_window, window_visits
from vidattn.kernels.tiling import Tiling
from vidattn.kernels.visits import Visits
from vidattn.patterns import Pattern
from vidattn.patterns.dynamic import DynamicPattern


def plannable(pattern: Pattern) -> bool:
    """Whether the kernels know the pattern; what data choose arrives as lists or as one that they know."""
    return is_window(pattern) or isinstance(pattern, (*LISTED, DynamicPattern))


def visits_of(problem: Problem, tiling: Tiling, inverted: bool, device: torch.device) -> Visits:
    """The visits of a call. ``inverted``: rows are keys, columns the queries that see them."""
    if problem.lists is not None:
        return dynamic_visits(problem.lists, tiling.rows, tiling.columns, inverted)
    pattern, grid = problem.pattern, problem.layout.grid
    make = window_visits if is_window(pattern) else list_visits
    return make(pattern, grid, tiling.rows, tiling.columns, inverted, device)
