"""``vidattn show``: draws a pattern on a token grid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vidattn.cli.arguments import BadArgument, check_output, grid, position, whole
from vidattn.cli.patterns import read_pattern

_EXAMPLES = """\
examples:
  vidattn show neighborhood:window=17x17 --grid 64x64
  vidattn show disc:radius=16 --grid 64x64 --text 32 --query 5,40 --output disc.png
  vidattn show radial:decay=0.5 --grid 9x32x32 --output radial.png

The PNG has three panels: the keys that one query sees; the key boxes that the query's tile visits (full
boxes run without a mask, partial ones with it); and the whole matrix of queries and keys.
"""
# Rows of keys are drawn for one tile at a time, so it is only the plan that grows with the grid.
_MOST_TOKENS = 1 << 18


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "show",
        help="draw a pattern: what a query sees, what its tile visits",
        description="Draw a pattern on a token grid.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("pattern", metavar="PATTERN", help="text form, as neighborhood:window=17x17, or a preset")
    add("--grid", type=grid, required=True, help="tokens as HxW or TxHxW, as 64x64 or 9x32x32")
    add("--text", type=whole, default=0, metavar="N", help="text tokens before the grid (default 0)")
    add("--query", type=position, help="the query to follow, y,x or t,y,x (default: the middle)")
    add("--output", type=Path, default=Path("pattern.png"), help="PNG file (default pattern.png)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Draw, save, and print the numbers."""
    from vidattn import TokenLayout
    from vidattn.cli.pictures import save_png
    from vidattn.drawing import draw_pattern, figures_of

    layout = TokenLayout(grid=arguments.grid, text_before=arguments.text)
    if layout.grid_tokens > _MOST_TOKENS:
        raise BadArgument("--grid", f"{layout.grid_tokens:,} tokens; at most {_MOST_TOKENS:,} can be drawn")
    kind = "image" if layout.grid[0] == 1 else "video"
    pattern = read_pattern(arguments.pattern, layout.grid, kind, layout.grid[1:])
    query = _query(arguments.query, layout.grid)
    output = check_output(arguments.output, (".png",))
    try:
        figures = figures_of(pattern, layout)
    except ValueError as error:  # segments that do not fit the grid, or a pattern too large to draw
        raise BadArgument("PATTERN", str(error)) from error
    image = draw_pattern(pattern, layout, query)
    save_png(image, output, {"pattern": pattern.to_text(), "grid": layout.grid, "text": arguments.text})
    text = f", {layout.text_tokens} text tokens" if layout.text_tokens else ""
    print(f"pattern  {pattern.to_text()}")
    print(f"grid     {'x'.join(map(str, layout.grid))} ({layout.grid_tokens:,} tokens){text}")
    print(f"density  {figures.density:.4f} of all pairs, {figures.grid_density:.4f} within the grid")
    print(f"plan     {figures.tiles:,} tiles, {figures.boxes:,} key boxes ({figures.full_boxes:,} full)")
    print(f"visited  {figures.visited_ratio:.3f} times the pairs that the pattern allows")
    print(f"file     {output}")


def _query(place: tuple[int, ...] | None, size: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """``place`` with the middle frame where it names none, checked against the grid."""
    if place is None:
        return None
    t, y, x = (size[0] // 2, size[1] // 2, 0)[: 3 - len(place)] + place
    if t >= size[0] or y >= size[1] or x >= size[2]:
        shown, extent = ",".join(map(str, place)), "x".join(map(str, size))
        raise BadArgument("--query", f"{shown} lies outside the grid {extent}, counted from 0")
    return t, y, x
