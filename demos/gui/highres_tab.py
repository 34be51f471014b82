"""The tab that goes beyond the trained size: stages appear as they finish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vidattn.patterns import Full

from . import highres, pages
from .engine import Job
from .parts import MANY, QUIET, Shop, followed, guarded
from .picture_tab import EXAMPLES
from .snippet import loading_lines
from .subject import Subject


class HighResolutionTab:
    """A target size, and the pictures of the stages on the way there.

    Args:
        shop: models and queue.
    """

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                gr.HTML(pages.heading("1", "What to draw, and how large"), padding=False)
                self.subject = Subject(shop, False, EXAMPLES, "512")
                self.steps = gr.Slider(
                    1, 50, 20, step=1, label="Steps of the first stage", elem_classes="va-first-steps"
                )
                self.guidance = gr.Radio(
                    list(highres.GUIDANCE),
                    value="frequency",
                    label="What keeps later stages to the first one",
                    info="frequency: its coarse features; latent: all of it, early on; none: nothing.",
                )
                self.compare = gr.Checkbox(False, label="Also draw it at full size at once, to compare")
                with gr.Row():
                    self.go = gr.Button("Generate", variant="primary", elem_classes="va-go")
                    self.stop = gr.Button("Stop", variant="stop", elem_classes="va-stop")
                self.subject.add_examples()
            with gr.Column(scale=7, min_width=500):
                gr.HTML(pages.heading("2", "Stages, as they finish"), padding=False)
                self.state = gr.HTML(pages.state("Press Generate."), padding=False, elem_classes="va-status")
                self.gallery = gr.Gallery(
                    show_label=False,
                    format="png",
                    columns=3,
                    fit_columns=False,
                    height=520,
                    object_fit="contain",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes="va-stages",
                )
                self.table = gr.HTML(padding=False, elem_classes="va-stage-table")
                self.code = gr.Code(language="python", label="Makes it again", interactive=False)
        subject = self.subject
        inputs = [subject.model, subject.prompt, subject.size, subject.seed, self.steps]
        outputs = [self.state, self.gallery, self.table, self.code]
        self.go.click(
            self.generate, [*inputs, self.guidance, self.compare], outputs, trigger_mode="once", **MANY
        )
        self.stop.click(shop.cancel, None, None, queue=False, **QUIET)

    def generate(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """All stages; gives the outputs again and again while they go on.

        Args:
            request: whose run it is.
            *values: of the model, prompt, size, seed, steps, guidance and comparison.
        """
        yield from guarded(self._generate(request, *values), 3)

    def _generate(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        *subject, steps, guidance, compare = values
        order = self.subject.order(*subject, steps, Full(), compare=compare)
        yield [pages.state("Starting."), [], "", ""]

        def work(job: Job) -> highres.Stages:
            return highres.run_stages(job, self.shop.catalog, order, guidance)

        for news, over in followed(self.shop, request, work):
            yield self._shown(news, over)

    def _shown(self, news: Any, over: bool) -> list[Any]:
        if not isinstance(news, highres.Stages):
            return [pages.state(news), *[gr.skip()] * 3]
        pictures = [(picture, pages.stage_title(stage)) for stage, picture in news.done]
        if news.direct is not None:
            pictures.append((news.direct[0], "at full size at once"))
        left = news.total - len(news.done)
        said = "Done." if over else f"{left} more to come." if left else "All stages are there."
        head = loading_lines(self.shop.catalog, news.order, "from vidattn.pipelines import upscale_generate")
        return [pages.state(said), pictures, pages.stages(news), highres.lines(self.shop.catalog, news, head)]
