"""``vidattn demo``: the browser app, served from this machine."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import vidattn
from vidattn.cli.arguments import BadArgument, positive

_EXAMPLES = """\
examples:
  vidattn demo
  vidattn demo --models ~/models --port 8080
  vidattn demo --host 0.0.0.0               let other machines in: they can use your GPU, and see your models

It needs gradio: pip install 'vidattn[demo]'. Only models that are shipped, or that lie below a folder given
with --models, can be opened. Ctrl-C stops it and removes its temporary files.
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "demo",
        help="the browser app: pictures with sparse attention beside dense ones",
        description="Serve the browser app.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("--models", type=Path, action="append", default=[], metavar="FOLDER", help="allow models below it")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=positive, help="default: 7860, or the next free one")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Serve until it is stopped."""
    for folder in arguments.models:
        if not folder.is_dir():
            raise BadArgument("--models", f"{str(folder)!r}: there is no such folder")
    if arguments.port is not None and arguments.port > 65535:
        raise BadArgument("--port", f"{arguments.port}: at most 65535")
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="vidattn-app-") as own:
        # before gradio is imported, so that nothing of it or of torch is written anywhere else
        os.environ["TMPDIR"] = tempfile.tempdir = own
        try:
            _serve(arguments)
        finally:
            os.environ.pop("TMPDIR")
            if before[0] is not None:
                os.environ["TMPDIR"] = before[0]
            tempfile.tempdir = before[1]


def _serve(arguments: argparse.Namespace) -> None:
    module = load_app()
    # ended by a supervisor or by Ctrl-C, it tidies up in the same way
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app = module.build_app(arguments.models, arguments.device, arguments.dtype)
    try:
        address = _launch(module, app, arguments)
        print(f"vidattn demo: {address} (Ctrl-C stops it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        app.close(verbose=False)
        app.close_engine()


def _launch(module: Any, app: Any, arguments: argparse.Namespace) -> str:
    """Start serving; returns the address."""
    try:
        _, address, _ = module.launch(
            app, arguments.host, arguments.port, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise BadArgument("--port", f"cannot listen on {arguments.host}: {error}") from error
    return str(address)


def load_app() -> Any:
    """The app's module: ``demos/app.py`` of a checkout, or the copy that the wheel carries.

    Raises:
        RuntimeError: gradio is missing or too old, or this installation has no app.
    """
    try:
        import gradio
    except ImportError as error:
        raise RuntimeError("the browser app needs gradio: pip install 'vidattn[demo]'") from error
    if int(gradio.__version__.split(".")[0]) < 6:
        raise RuntimeError(f"the browser app needs gradio 6 or newer, this is {gradio.__version__}")
    package = Path(vidattn.__file__).parent
    if (package.parent / "demos" / "app.py").is_file():
        if str(package.parent) not in sys.path:
            sys.path.insert(0, str(package.parent))
        return importlib.import_module("demos.app")
    if (package / "_demo" / "app.py").is_file():
        return importlib.import_module("vidattn._demo.app")
    raise RuntimeError("this installation has no browser app: install a wheel of vidattn, or use a checkout")
