"""The tab that makes a picture twice, patched and dense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from . import pages
from .engine import Cancelled
from .generate import Result, run_order
from .order import Order, read_size, read_whole
from .parts import MANY, QUIET, PatternPicker, Shop, Subject, complaint, followed
from .snippet import python_lines

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

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                gr.HTML(pages.heading("1", "What to draw"), padding=False)
                self.subject = Subject(shop, False, EXAMPLES, "256")
                with gr.Row():
                    self.steps = gr.Slider(
                        1, 50, 20, step=1, label="Steps", min_width=110, elem_classes="va-steps"
                    )
                    self.dense = gr.Slider(
                        0, 50, 5, step=1, label="Dense steps first", min_width=110, elem_classes="va-dense"
                    )
                self.compare = gr.Checkbox(True, label="Also make the dense picture, to compare")
                with gr.Row():
                    self.go = gr.Button("Generate", variant="primary", elem_classes="va-go")
                    self.stop = gr.Button("Stop", variant="stop", elem_classes="va-stop")
                self.subject.add_examples()
            with gr.Column(scale=3, min_width=300):
                gr.HTML(pages.heading("2", "What each token sees"), padding=False)
                self.picker = PatternPicker(self.subject)
            with gr.Column(scale=4, min_width=360):
                gr.HTML(pages.heading("3", "Result"), padding=False)
                self._results()
        self._wire()

    def _results(self) -> None:
        self.state = gr.HTML(pages.state("Press Generate."), padding=False, elem_classes="va-status")
        self.slider = gr.ImageSlider(
            label="Dense on the left, patched on the right: drag the line",
            format="png",
            interactive=False,
            max_height=470,
            elem_classes="va-result",
        )
        with gr.Tab("Difference"):
            self.gap = gr.Image(
                label="Absolute difference, 4 times enlarged",
                format="png",
                interactive=False,
                height=320,
                buttons=["download", "fullscreen"],
                elem_classes="va-gap",
            )
        with gr.Tab("Python"):
            self.code = gr.Code(
                language="python",
                label="Makes the patched picture again",
                interactive=False,
                elem_classes="va-code",
            )
        with gr.Tab("What ran"):
            self.report = gr.HTML(padding=False, elem_classes="va-report-box")

    def _wire(self) -> None:
        subject = self.subject
        inputs = [
            subject.model,
            subject.prompt,
            subject.size,
            subject.seed,
            self.steps,
            self.dense,
            self.compare,
        ]
        outputs = [self.state, self.slider, self.gap, self.code, self.report]
        self.go.click(self.generate, [*inputs, *self.picker.inputs], outputs, trigger_mode="once", **MANY)
        self.stop.click(self.cancel, None, None, queue=False, **QUIET)

    def generate(
        self,
        request: gr.Request,
        model: str,
        prompt: str,
        size: str,
        seed: float,
        steps: float,
        dense: float,
        compare: bool,
        *pattern: Any,
    ) -> Iterator[list[Any]]:
        """Both runs; gives the outputs again and again while they go on."""
        try:
            height, width = read_size(size)
            order = Order(
                model=model or "",
                prompt=prompt,
                height=height,
                width=width,
                steps=read_whole(steps, "steps"),
                seed=read_whole(seed, "seed"),
                pattern=self.picker.pattern(*pattern),
                dense_steps=min(read_whole(dense, "dense steps"), read_whole(steps, "steps")),
                compare=bool(compare),
            )
            self.shop.catalog.find(order.model)
            yield [pages.state("Starting."), None, None, "", ""]
            for news, over in followed(
                self.shop, request, lambda job: run_order(job, self.shop.catalog, order)
            ):
                yield self._shown(news, over)
        except Cancelled:
            yield [pages.state("Stopped."), *[gr.skip()] * 4]
        except (ValueError, TypeError, gr.Error) as error:
            told = complaint(error)
            yield [pages.wrong(told.message), *[gr.skip()] * 4]
            raise told from error

    def cancel(self, request: gr.Request) -> None:
        """Stop this session's run."""
        if not self.shop.engine.cancel(str(request.session_hash)):
            gr.Info("Nothing of yours is running.")

    def left(self, request: gr.Request) -> None:
        """The page was closed: nobody waits for the run."""
        self.shop.engine.cancel(str(request.session_hash))

    def _shown(self, news: Any, over: bool) -> list[Any]:
        if not isinstance(news, Result):
            return [pages.state(news), *[gr.skip()] * 4]
        patched = news.frames("patched")[0]
        both = news.outcome.dense is not None
        code = python_lines(self.shop.catalog, news.order, news.call)
        left = news.frames("dense")[0] if both else patched
        gap = news.frames("difference")[0] if both else None
        return [pages.verdict(news), (left, patched), gap, code, pages.report(news)]
