"""The widgets for what is to be drawn: model, prompt, size and seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from vidattn.layout import Grid
from vidattn.patterns import Pattern

from . import pages
from .catalog import Facts
from .engine import Cancelled, Job, Step
from .order import Order, read_size, read_whole
from .parts import MANY, Shop, followed


class Subject:
    """Model, prompt, size and seed, and what the controls must know of the model.

    Args:
        shop: the models.
        moving: models of clips, or of stills.
        examples: prompts to start from.
        size: pixels at first.
    """

    def __init__(self, shop: Shop, moving: bool, examples: list[str], size: str) -> None:
        self.shop, self.moving, self.examples = shop, moving, examples
        names = shop.catalog.names(moving)
        self.model = gr.Dropdown(
            names,
            value=names[0] if names else None,
            label="Model",
            allow_custom_value=True,
            elem_classes="va-model",
        )
        self.note = gr.HTML(padding=False)
        self.prompt = gr.Textbox(
            examples[0], label="What to draw", lines=2, max_length=2000, elem_classes="va-prompt"
        )
        with gr.Row():
            self.size = gr.Dropdown(
                ["128", "192", "256", "384", "512", "768", "1024"],
                value=size,
                label="Size (512, 384x512)",
                allow_custom_value=True,
                min_width=110,
                elem_classes="va-size",
            )
            self.seed = gr.Number(2, label="Seed", precision=0, min_width=110, elem_classes="va-seed")

    def facts(self, name: str | None) -> Facts | None:
        """What is known of the model without loading it."""
        return self.shop.catalog.known(name or "")

    def add_examples(self) -> None:
        """The prompts to start from, to be clicked."""
        examples = [[text] for text in self.examples]
        gr.Examples(examples, [self.prompt], label="For example", api_visibility="private")

    def order(
        self,
        model: str | None,
        prompt: str,
        size: str,
        seed: float,
        steps: float,
        pattern: Pattern,
        *,
        dense: float = 0,
        compare: bool = False,
        frames: float | None = None,
    ) -> Order:
        """What the widgets ask for.

        Raises:
            ValueError: a value that cannot be, or a model that is not there.
        """
        self.shop.catalog.find(model or "")
        height, width = read_size(size)
        count = read_whole(steps, "steps")
        return Order(
            model=model or "",
            prompt=prompt,
            height=height,
            width=width,
            steps=count,
            seed=read_whole(seed, "seed"),
            pattern=pattern,
            dense_steps=min(read_whole(dense, "dense steps"), count),
            frames=None if frames is None else read_whole(frames, "frames"),
            compare=bool(compare),
        )

    def wire(self, shown: Callable[..., Any]) -> None:
        """Load the model at ``shown``, an event of the page that says it will be needed; or when changed."""
        for event in (shown, self.model.change):
            event(self.load, self.model, self.note, **MANY)

    def load(self, request: gr.Request, name: str | None) -> Iterator[str]:
        """Load the chosen model and say what it is."""
        if not name:
            yield pages.wrong("No model of this kind is here.")
            return
        if (known := self.facts(name)) is not None:
            yield pages.model(known)
            return
        try:
            work = functools.partial(self._load, name)
            for news, over in followed(self.shop, request, work, f" {id(self)}"):
                yield pages.model(news) if over else pages.state(news)
        except Cancelled:
            yield pages.wrong("Stopped while the model was loading.")
        except gr.Error as error:
            yield pages.wrong(error.message)
            raise

    def _load(self, name: str, job: Job) -> Facts:
        job.tell(Step("loading the model", 0, 1))
        return self.shop.catalog.facts(name)


def grid_of(facts: Facts | None, size: object, frames: int = 1) -> Grid:
    """Tokens of a picture of that size.

    Raises:
        ValueError: the size cannot be read, or no model is loaded yet.
    """
    if facts is None:
        raise ValueError("the model is not loaded yet")
    return facts.grid(*read_size(size), frames)
