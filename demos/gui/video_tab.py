"""The tab that makes a clip twice, patched and dense."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import pages
from .clips import clip_url, frame_of
from .generate import Result
from .parts import QUIET, Shop
from .picture_tab import PictureTab

EXAMPLES = [
    "noto cat moving left on a red background",
    "3d red apple bouncing on a blue background",
    "flat rocket moving up on a white background",
]
NEEDED = """<div class="va-facts"><p>No model that makes clips is here.</p>
<p>Start the app with <code>vidattn demo --models FOLDER</code>, where FOLDER holds a pipeline that diffusers
saved (<code>save_pretrained</code>), such as Wan, HunyuanVideo, LTX, CogVideoX or Mochi;
<code>vidattn models</code> lists all that can be patched. The demo model emoji-wan will come with vidattn
when it is trained.</p></div>"""


class VideoTab(PictureTab):
    """As ``PictureTab``, for clips: both move side by side, and a slider compares single frames.

    Args:
        shop: models and queue; without a model for clips the tab says what is needed.
    """

    moving = True
    examples = EXAMPLES
    size = "256"

    def __init__(self, shop: Shop) -> None:
        self.ready = bool(shop.catalog.names(moving=True))
        if self.ready:
            super().__init__(shop)
        else:
            gr.HTML(NEEDED, padding=False, elem_classes="va-needed")

    def _results(self) -> list[Any]:
        clips = gr.HTML(padding=False, elem_classes="va-clips")
        kept = gr.State(None)
        with gr.Tab("Frame by frame"):
            number = gr.Slider(1, 2, 1, step=1, label="Frame", interactive=True)
            slider = gr.ImageSlider(
                label="Dense on the left, patched on the right: drag the line",
                format="png",
                interactive=False,
                max_height=360,
                elem_classes="va-result",
            )
        number.change(frame_of, [kept, number], slider, **QUIET)
        return [clips, kept, number, slider, *self._words()]

    def _nothing(self) -> list[Any]:
        return ["", None, gr.skip(), None, "", ""]

    def _shown(self, result: Result) -> list[Any]:
        patched = result.frames("patched")
        dense = result.frames("dense") if result.outcome.dense is not None else patched
        clips = {"patched": patched} if dense is patched else {"dense": dense, "patched": patched}
        kept = list(zip(dense, patched, strict=True))
        number = gr.update(maximum=max(2, len(kept)), value=1)
        return [
            pages.clips({name: clip_url(frames) for name, frames in clips.items()}),
            kept,
            number,
            kept[0],
        ]
