"""The tab that shows where a model's attention is, by layer and head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vidattn.patterns import Full

from . import heatmap, pages
from .attention import Energy, measure
from .engine import Job
from .order import read_whole
from .parts import MANY, QUIET, Shop, followed, guarded
from .picture_tab import EXAMPLES
from .subject import Subject


class AttentionTab:
    """A heat map of layers and heads, and the map of the head that is clicked.

    Args:
        shop: models and queue.
    """

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                gr.HTML(pages.heading("1", "Whose attention"), padding=False)
                self.subject = Subject(shop, False, EXAMPLES, "256")
                with gr.Row():
                    self.steps = gr.Slider(
                        1, 50, 20, step=1, label="Steps", min_width=110, elem_classes="va-steps"
                    )
                    self.step = gr.Slider(
                        1, 50, 6, step=1, label="Look at step", min_width=110, elem_classes="va-look"
                    )
                with gr.Row():
                    self.go = gr.Button("Measure", variant="primary", elem_classes="va-go")
                    self.stop = gr.Button("Stop", variant="stop", elem_classes="va-stop")
                self.subject.add_examples()
            with gr.Column(scale=5, min_width=420):
                gr.HTML(pages.heading("2", "Where it is: layers down, heads across"), padding=False)
                self.state = gr.HTML(pages.state("Press Measure."), padding=False, elem_classes="va-status")
                self.measure = gr.Radio(
                    list(heatmap.MEASURES),
                    value="in 17x17",
                    label="Attention in the window around the query; how wide it spreads; to the text",
                )
                self.heat = gr.Image(
                    show_label=False, interactive=False, format="png", buttons=["fullscreen"]
                )
                self.heat.elem_classes = ["va-heat"]
            with gr.Column(scale=3, min_width=300):
                gr.HTML(pages.heading("3", "One head; click a cell"), padding=False)
                self.head_note = gr.HTML(pages.state("The picture shows attention by offset from the query."))
                self.head = gr.Image(
                    show_label=False, interactive=False, format="png", buttons=["fullscreen"]
                )
        self.energy = gr.State(None)
        self.chosen = gr.State((0, 0))
        self._wire()

    def _wire(self) -> None:
        subject, shown = self.subject, [self.state, self.heat, self.head_note, self.head]
        inputs = [subject.model, subject.prompt, subject.size, subject.seed, self.steps, self.step]
        look = {"fn": self.look, "inputs": [self.energy, self.measure, self.chosen], "outputs": shown} | QUIET
        self.go.click(self.run, inputs, [self.state, self.energy], trigger_mode="once", **MANY).success(
            **look
        )
        self.measure.change(**look)
        self.heat.select(self.pick, [self.energy], self.chosen, **QUIET).then(**look)
        self.stop.click(self.shop.cancel, None, None, queue=False, **QUIET)

    def run(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Measure; gives the state, and at the end what was measured.

        Args:
            request: whose run it is.
            *values: of the model, prompt, size, seed, steps and the step.
        """
        yield from guarded(self._run(request, *values), 1)

    def _run(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        order = self.subject.order(*values[:5], Full())
        step = min(read_whole(values[5], "step"), order.steps)

        def work(job: Job) -> Energy:
            return measure(job, self.shop.catalog, order, step)

        for news, over in followed(self.shop, request, work):
            yield [gr.skip(), news] if over else [pages.state(news), gr.skip()]

    def look(self, energy: Energy | None, name: str, chosen: tuple[int, int]) -> list[Any]:
        """Draw what was measured."""
        if energy is None:
            return [gr.skip()] * 4
        layer = min(chosen[0], len(energy.layers) - 1)
        chosen = layer, min(chosen[1], len(energy.layers[layer].text) - 1)
        note = f"{energy.layers[layer].layer}, head {chosen[1]}: attention by offset from the query (red)."
        return [
            pages.state(f"Step {energy.step}. {heatmap.sentence(energy, name)}"),
            heatmap.draw(energy, name, chosen),
            pages.state(note),
            heatmap.draw_head(energy, chosen),
        ]

    def pick(self, event: gr.SelectData, energy: Energy | None) -> Any:
        """The cell that was clicked."""
        if energy is None:
            return gr.skip()
        x, y = event.index
        return heatmap.cell_at((int(x), int(y)), energy)
