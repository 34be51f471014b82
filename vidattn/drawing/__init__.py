"""Draws a pattern on a token grid: what one query sees, what its tile visits, and the whole matrix."""

from vidattn.drawing.figure import draw_pattern
from vidattn.drawing.numbers import Figures, figures_of

__all__ = ["Figures", "draw_pattern", "figures_of"]
