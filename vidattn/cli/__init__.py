"""The command ``vidattn``. Exit status: 0 done, 2 bad arguments, 1 failed."""

from vidattn.cli.main import main

__all__ = ["main"]
