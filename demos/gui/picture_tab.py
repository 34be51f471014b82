"""The tab that makes a picture twice, patched and dense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from . import pages
from .generate import Result, run_order
from .parts import MANY, QUIET, Shop, followed, guarded
from .pattern_picker import PatternPicker
from .snippet import python_lines
from .subject import Subject

EXAMPLES = [
    "two 3d bicycle on a yellow background",
    "noto cat on a red background",
    "flat rocket above flat house on a blue to pink gradient",
    "3d panda left of 3d red apple on a white background",
]


class PictureTab:
    """Everything between "Generate" and the two pictures.

    Args:
        shop: models and queue.
    """

    moving = False
    examples = EXAMPLES
    size = "256"

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                gr.HTML(pages.heading("1", "What to draw"), padding=False)
                self._wishes()
            with gr.Column(scale=3, min_width=300):
                gr.HTML(pages.heading("2", "What each token sees"), padding=False)
                self.picker = PatternPicker(self.subject, self.frames)
            with gr.Column(scale=4, min_width=360):
                gr.HTML(pages.heading("3", "Result"), padding=False)
                self.state = gr.HTML(pages.state("Press Generate."), padding=False, elem_classes="va-status")
                self.results = self._results()
        subject = self.subject
        wishes = [subject.model, subject.prompt, subject.size, subject.seed, self.steps, self.dense]
        inputs = [*wishes, self.compare, self.frames or gr.State(None), *self.picker.inputs]
        self.go.click(self.generate, inputs, [self.state, *self.results], trigger_mode="once", **MANY)
        self.stop.click(shop.cancel, None, None, queue=False, **QUIET)

    # ------------------------------------------------------------------ building
    def _wishes(self) -> None:
        self.subject = Subject(self.shop, self.moving, self.examples, self.size)
        self.frames = (
            gr.Slider(1, 81, 9, step=4, label="Frames", elem_classes="va-frames") if self.moving else None
        )
        with gr.Row():
            self.steps = gr.Slider(1, 50, 20, step=1, label="Steps", min_width=110, elem_classes="va-steps")
            self.dense = gr.Slider(
                0, 50, 5, step=1, label="Dense steps first", min_width=110, elem_classes="va-dense"
            )
        self.compare = gr.Checkbox(True, label="Also run it dense, to compare")
        with gr.Row():
            self.go = gr.Button("Generate", variant="primary", elem_classes="va-go")
            self.stop = gr.Button("Stop", variant="stop", elem_classes="va-stop")
        self.subject.add_examples()

    def _results(self) -> list[Any]:
        slider = gr.ImageSlider(
            label="Dense on the left, patched on the right: drag the line",
            format="png",
            interactive=False,
            max_height=470,
            elem_classes="va-result",
        )
        with gr.Tab("Difference"):
            gap = gr.Image(
                label="Absolute difference, 4 times enlarged",
                format="png",
                interactive=False,
                height=320,
                buttons=["download", "fullscreen"],
                elem_classes="va-gap",
            )
        return [slider, gap, *self._words()]

    def _words(self) -> list[Any]:
        with gr.Tab("Python"):
            code = gr.Code(
                language="python",
                label="Makes the patched result again",
                interactive=False,
                elem_classes="va-code",
            )
        with gr.Tab("What ran"):
            report = gr.HTML(padding=False, elem_classes="va-report-box")
        return [code, report]

    # ------------------------------------------------------------------ handlers
    def generate(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Both runs; gives the outputs again and again while they go on.

        Args:
            request: whose run it is.
            *values: of the model, prompt, size, seed, steps, dense steps, comparison, frames and the controls
                of the pattern.
        """
        yield from guarded(self._generate(request, *values), len(self.results))

    def _generate(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        *subject, steps, dense, compare, frames = values[:8]
        pattern = self.picker.pattern(*values[8:])
        order = self.subject.order(*subject, steps, pattern, dense=dense, compare=compare, frames=frames)
        yield [pages.state("Starting."), *self._nothing()]
        for news, _ in followed(self.shop, request, lambda job: run_order(job, self.shop.catalog, order)):
            if isinstance(news, Result):
                code = python_lines(self.shop.catalog, news.order, news.call)
                yield [pages.verdict(news), *self._shown(news), code, pages.report(news)]
            else:
                yield [pages.state(news), *[gr.skip()] * len(self.results)]

    def _nothing(self) -> list[Any]:
        return [None, None, "", ""]

    def _shown(self, result: Result) -> list[Any]:
        """The pictures of a result, or of its first half."""
        patched = result.frames("patched")[0]
        if result.outcome.dense is None:
            return [(patched, patched), None]
        return [(result.frames("dense")[0], patched), result.frames("difference")[0]]
