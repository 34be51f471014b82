"""Reading command-line values: each function names what it got and what is allowed."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn


class BadArgument(Exception):
    """An argument's value turned out to be wrong after parsing: exit status 2, one line.

    Args:
        argument: as the user typed it, ``"--model"``.
        message: what was got and what is allowed.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"argument {argument}: {message}")


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and examples kept as they are written."""

    def __init__(self, **options: object) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if not re.fullmatch(r"\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def number(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def size(text: str) -> tuple[int, int]:
    """Pixels as ``512`` or ``384x512`` (height x width)."""
    parts = _product(text, (1, 2))
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give 512, or 384x512 (height x width)")
    return parts[0], parts[-1]


def grid(text: str) -> tuple[int, ...]:
    """Tokens as ``64x64`` (height x width) or ``9x32x32`` (frames x height x width)."""
    parts = _product(text, (1, 2, 3))
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a grid: give HxW as 64x64, or TxHxW as 9x32x32")
    return parts


def position(text: str) -> tuple[int, ...]:
    """A token of the grid as ``y,x`` or ``t,y,x``."""
    if not re.fullmatch(r"\d{1,6}(,\d{1,6}){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a token: give y,x as 10,20, or t,y,x as 4,10,20")
    return tuple(int(part) for part in text.split(","))


def _product(text: str, lengths: tuple[int, ...]) -> tuple[int, ...] | None:
    if not re.fullmatch(r"\d{1,6}([xX×]\d{1,6})*", text):
        return None
    parts = tuple(int(part) for part in re.split("[xX×]", text))
    return parts if len(parts) in lengths and min(parts) > 0 else None


def check_output(path: Path, suffixes: tuple[str, ...]) -> Path:
    """``path``, if a file of that name can be written; its folder is made.

    Raises:
        BadArgument: the ending isn't one of ``suffixes``, or no file can be made there.
    """
    if path.suffix.lower() not in suffixes:
        raise BadArgument("--output", f"{str(path)!r} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise BadArgument("--output", f"{str(path)!r} is a folder; give a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadArgument("--output", f"cannot make the folder of {str(path)!r}: {error.strerror}") from error
    return path
