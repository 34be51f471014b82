"""The colours of the drawings, chosen to differ in lightness too, so that they survive grey printing."""

from __future__ import annotations

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (28, 32, 38)
FAINT: Color = (110, 118, 128)
UNSEEN: Color = (232, 235, 239)
SEEN: Color = (66, 133, 196)
QUERY: Color = (214, 57, 46)
FULL: Color = (46, 139, 87)
PARTIAL: Color = (245, 158, 11)
SOME: Color = (252, 214, 139)
"""A partial box's key that few queries see; PARTIAL is one that all see."""
WASTED: Color = (233, 213, 232)
TEXT: Color = (139, 104, 178)
"""Text tokens, which in the matrix are seen by all and see all."""
