"""Parses the command line, runs the command, and turns what goes wrong into one line and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import vidattn
from vidattn.cli import bench, demo, distill, doctor, generate, models, profile, report, show
from vidattn.cli.arguments import BadArgument, Parser

_EXAMPLES = """\
examples:
  vidattn generate --prompt "noto cat on a red background" --size 512 --output cat.png
  vidattn show neighborhood:window=17x17 --grid 64x64 --output pattern.png
  vidattn models
  vidattn doctor
  vidattn demo

exit status: 0 done, 2 bad arguments, 1 failed
"""


def build_parser() -> Parser:
    """The parser of the command line with all its commands."""
    parser = Parser(
        prog="vidattn",
        description="Sparse and linear attention for image and video diffusion models.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"vidattn {vidattn.__version__}")
    parser.add_argument("--traceback", action="store_true", help="on failure, print Python's traceback too")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in (generate, show, report, bench, profile, distill, models, doctor, demo):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        The exit status: 0 done, 2 bad arguments, 1 failed.
    """
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse leaves by this after --help and after an error
        return int(stop.code or 0)
    name = f"vidattn {arguments.command}"
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except BadArgument as error:
        return _complain(arguments.traceback, f"{name}: error: {error} (see {name} --help)", 2)
    except KeyboardInterrupt:
        return _complain(False, f"{name}: interrupted", 1)
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # whatever a model, a driver or the disk raises: one line for the user
        return _complain(arguments.traceback, f"{name}: failed: {_one_line(error)}", 1)


def _complain(with_traceback: bool, message: str, status: int) -> int:
    if with_traceback:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return status


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    shown = text if len(text) <= 500 else text[:500] + " ..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__
