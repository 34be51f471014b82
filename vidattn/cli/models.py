"""``vidattn models``: the families that can be patched, and the demo models of this installation."""

from __future__ import annotations

import argparse
from typing import Any

_EXAMPLES = """\
examples:
  vidattn models
  vidattn generate --model emoji-flux --prompt "noto cat on a red background"
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "models",
        help="supported model families and shipped demo models",
        description="List the model families that can be patched, and the demo models of this installation.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print both lists."""
    del arguments
    import vidattn
    from vidattn import demo_models

    print("families that vidattn.patch knows, with their classes")
    for family, classes in sorted(vidattn.supported().items()):
        print(f"  {family:<16}{', '.join(sorted(classes))}")
    print("demo models (vidattn generate --model NAME)")
    for name, folder in demo_models.shipped().items():
        megabytes = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()) / 1e6
        settings = ", ".join(f"{key}={value!r}" for key, value in folder.defaults.items())
        print(f"  {name:<12}{folder.pipeline}, {megabytes:.0f} MB, {folder.path}")
        if settings:
            print(f"  {'':<12}defaults: {settings}")
    if not demo_models.shipped():
        print("  none in this installation; --model also takes a folder or a hub id")
