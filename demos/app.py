"""The browser app: pictures with sparse attention beside dense ones, the pattern drawn as its sliders move.

``vidattn demo`` starts it; ``python -m demos.app`` does the same from a checkout. It needs gradio 6 or newer
(``pip install 'vidattn[demo]'``) and no network: fonts, scripts and styles come from this machine.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from .gui import pages
from .gui.attention_tab import AttentionTab
from .gui.catalog import Catalog
from .gui.engine import Engine
from .gui.highres_tab import HighResolutionTab
from .gui.parts import Shop
from .gui.picture_tab import PictureTab
from .gui.video_tab import VideoTab

KEEP = 3600
"""Seconds that pictures stay in the app's temporary folder."""


def build_app(
    models: Iterable[str | Path] = (), device: str = "auto", dtype: str = "auto", waiting: int = 8
) -> gr.Blocks:
    """The page, not yet served.

    Args:
        models: folders below which pipelines in diffusers' format may be opened, beside the shipped ones.
        device: as ``vidattn generate --device``.
        dtype: as ``vidattn generate --dtype``.
        waiting: how many runs may be under way or wait; further ones are refused with a message.

    Raises:
        ValueError: one of ``models`` is no folder.

    Example:
        >>> app = build_app()
        >>> app.title
        'vidattn'
    """
    _own_folder()
    shop = Shop(Catalog(models, device, dtype), Engine(waiting))
    with gr.Blocks(
        title="vidattn", analytics_enabled=False, fill_width=True, delete_cache=(KEEP // 6, KEEP)
    ) as app:
        gr.HTML(pages.TITLE, padding=False)
        with gr.Tab("Picture"):
            picture = PictureTab(shop)
        with gr.Tab("High resolution") as second:
            large = HighResolutionTab(shop)
        with gr.Tab("Attention") as third:
            attention = AttentionTab(shop)
        with gr.Tab("Video") as fourth:
            video = VideoTab(shop)
        picture.subject.wire(app.load)
        if video.ready:
            video.subject.wire(fourth.select)
        attention.subject.wire(third.select)
        large.subject.wire(second.select)
        app.unload(shop.left)
    app.queue(max_size=8 * waiting, api_open=False)
    app.close_engine = shop.engine.close
    return app


def launch(app: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, **options: Any) -> Any:
    """Serve the page, to this machine only unless another host is given. Nothing is shared or reported.

    Args:
        app: what ``build_app`` made.
        host: address to listen on; "0.0.0.0" lets other machines in.
        port: 7860 or the next free one when None.
        **options: further arguments of ``gradio.Blocks.launch``.
    """
    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # none is fetched
    fixed: dict[str, Any] = {
        "theme": gr.themes.Default(
            primary_hue="blue",
            neutral_hue="slate",
            spacing_size="sm",
            radius_size="sm",
            font=font,
            font_mono=mono,
        ),
        "css": pages.CSS,
        "server_name": host,
        "server_port": port,
        "share": False,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "max_file_size": 1 << 16,  # nothing is to be uploaded
        "footer_links": [],
        "run_history": False,
        "show_error": True,
    }
    return app.launch(**fixed | options)


def _own_folder() -> None:
    """Everything that Gradio writes goes into a folder of this process, which is removed at its end."""
    folder = tempfile.mkdtemp(prefix="vidattn-app-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_EXAMPLES_CACHE"] = os.path.join(folder, "examples")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


if __name__ == "__main__":
    from vidattn.cli import main

    raise SystemExit(main(["demo", *sys.argv[1:]]))
