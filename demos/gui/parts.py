"""Parts of the page that several tabs have: the model with its prompt, and the pattern with its drawing."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vidattn.cli.arguments import BadArgument
from vidattn.layout import Grid
from vidattn.patterns import Pattern

from . import controls, pages, preview
from .catalog import Catalog, Facts
from .engine import Busy, Cancelled, Engine, Job
from .order import in_words, read_size

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""No handler is an endpoint of a public API."""
QUIET: dict[str, Any] = PRIVATE | {"show_progress": "hidden"}
MANY: dict[str, Any] = QUIET | {"concurrency_limit": 16}
"""For handlers that wait for the engine, whose queue is the one that counts."""


@dataclass(frozen=True)
class Shop:
    """What all tabs share: the models and the queue."""

    catalog: Catalog
    engine: Engine


def followed(shop: Shop, request: gr.Request, work: Callable[[Job], Any]) -> Iterator[tuple[Any, bool]]:
    """Runs work in the queue; gives (what it tells, False), and at the end (what it returned, True).

    Raises:
        Cancelled: it was stopped.
        gr.Error: whatever went wrong, in words.
    """
    try:
        job = shop.engine.submit(str(request.session_hash), work)
        for news in job.follow():
            yield news, False
        assert job.future is not None, "submit sets it"
        yield job.future.result(), True
    except Cancelled:
        raise
    except Exception as error:  # models, drivers and sizes fail in their own ways: the person gets a sentence
        raise complaint(error) from error


def complaint(error: Exception) -> gr.Error:
    """The error as the page shows it; what was not foreseen is also written to the server's log."""
    if isinstance(error, gr.Error):
        return error
    words = in_words(error)
    if not isinstance(error, (ValueError, TypeError, BadArgument, Busy, Cancelled)):
        traceback.print_exception(error, file=sys.stderr)
        words = f"This failed: {type(error).__name__}: {words}"
    return gr.Error(words, title="That did not work", duration=None, print_exception=False)


# ---------------------------------------------------------------------------------------------- the model
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

    def load(self, request: gr.Request, name: str | None) -> Iterator[str]:
        """Load the chosen model and say what it is."""
        if not name:
            yield pages.wrong("No model of this kind is here.")
            return
        try:
            for news, over in followed(self.shop, request, lambda _: self.shop.catalog.facts(name)):
                yield pages.model(news) if over else pages.state(news)
        except Cancelled:
            yield pages.wrong("Stopped while the model was loading.")
        except gr.Error as error:
            yield pages.wrong(error.message)
            raise


def grid_of(facts: Facts | None, size: object, frames: int = 1) -> Grid:
    """Tokens of a picture of that size.

    Raises:
        ValueError: the size cannot be read, or no model is loaded yet.
    """
    if facts is None:
        raise ValueError("the model is not loaded yet")
    return facts.grid(*read_size(size), frames)


# ---------------------------------------------------------------------------------------------- the pattern
class PatternPicker:
    """A pattern with its sliders and its drawing.

    Args:
        subject: whose model and size decide the grid.
        frames: the slider of a clip's frames, or None.
    """

    def __init__(self, subject: Subject, frames: gr.Slider | None = None) -> None:
        self.subject, self.moving = subject, subject.moving
        names = controls.pattern_names(self.moving)
        with gr.Row():
            self.preset = gr.Dropdown(
                controls.preset_names(self.moving),
                value=None,
                label="Start from a preset",
                min_width=120,
            )
            self.name = gr.Dropdown(
                [(f"{controls.TITLES.get(name, name)} ({name})", name) for name in names],
                value="neighborhood",
                label="Each token sees",
                min_width=180,
                elem_classes="va-pattern",
            )
        self.controls: list[controls.Control] = []
        self.widgets: list[Any] = []
        self.columns = [self._column(name) for name in names]
        self.query = gr.State(None)
        self.view = gr.Radio(
            list(preview.VIEWS), value=preview.VIEWS[0], label="Drawn for the red token; click another one"
        )
        self.image = gr.Image(
            show_label=False,
            interactive=False,
            format="png",
            buttons=[],
            height=380,
            elem_classes="va-drawing",
        )
        self.facts = gr.HTML(padding=False, elem_classes="va-facts-box")
        self._frames = [frames] if frames is not None else []
        self.inputs = [self.name, *self.widgets]
        self._wire(names)

    def pattern(self, name: str, *values: Any) -> Pattern:
        """The pattern that the widgets stand at."""
        mine = {
            (control.field, control.axis): value
            for control, value in zip(self.controls, values, strict=True)
            if control.pattern == name
        }
        return controls.pattern_of(name, self.moving, mine)

    # ------------------------------------------------------------------ building
    def _column(self, name: str) -> gr.Column:
        found = controls.controls_of(name, self.moving)
        with gr.Column(visible=name == "neighborhood", min_width=100) as column:
            for rare in (False, True):
                group = [control for control in found if control.rare == rare]
                if not group:
                    continue
                with gr.Accordion("More", open=False) if rare else gr.Row():
                    for control in group:
                        self.controls.append(control)
                        self.widgets.append(_widget(control))
        return column

    def _wire(self, names: list[str]) -> None:
        self.name.change(
            lambda name: [gr.update(visible=name == other) for other in names],
            self.name,
            self.columns,
            **QUIET,
        )
        look = [self.subject.model, self.subject.size, self.query, self.view]
        shown = [self.image, self.facts]
        redraw = {
            "fn": self._draw,
            "inputs": [*look, *self._frames_in(), *self.inputs],
            "outputs": shown,
        } | QUIET
        moved = [
            widget.change
            for widget in (self.name, self.subject.size, self.view, *self._frames, *self.widgets)
        ]
        gr.on([*moved, self.subject.note.change], trigger_mode="always_last", **redraw)
        self.image.select(
            self._pick,
            [self.subject.model, self.subject.size, self.query, *self._frames_in()],
            self.query,
            **QUIET,
        ).then(**redraw)
        self.preset.input(
            self._preset,
            [self.preset, self.subject.model, self.subject.size, *self._frames_in()],
            self.inputs,
            **QUIET,
        )

    def _frames_in(self) -> list[Any]:
        return self._frames or [gr.State(1)]

    # ------------------------------------------------------------------ handlers
    def _draw(
        self, model: str, size: str, query: Grid | None, view: str, frames: int, name: str, *values: Any
    ) -> tuple[Any, str]:
        try:
            grid = grid_of(self.subject.facts(model), size, int(frames))
            drawn = preview.draw(self.pattern(name, *values), grid, query, view)
        except ValueError as error:
            return None, pages.wrong(in_words(error))
        return drawn.image, pages.drawing(drawn)

    def _pick(
        self, event: gr.SelectData, model: str, size: str, query: Grid | None, frames: int
    ) -> Grid | None:
        try:
            grid = grid_of(self.subject.facts(model), size, int(frames))
        except ValueError:
            return query
        x, y = event.index
        return preview.query_at((int(x), int(y)), grid, query)

    def _preset(self, preset: str, model: str, size: str, frames: int) -> list[Any]:
        try:
            facts = self.subject.facts(model)
            grid = grid_of(facts, size, int(frames))
            assert facts is not None, "else there is no grid"
            pattern = controls.preset_pattern(preset, self.moving, grid, facts.native)
        except ValueError as error:
            raise complaint(error) from error
        values = controls.values_of(pattern, self.moving, grid)
        return [
            pattern.name,
            *(
                values.get((c.field, c.axis), gr.skip()) if c.pattern == pattern.name else gr.skip()
                for c in self.controls
            ),
        ]


def _widget(control: controls.Control) -> Any:
    label = control.label
    options: dict[str, Any] = {"label": label, "min_width": 100}
    options["elem_classes"] = f"va-control-{control.pattern}-{control.field}"
    if control.kind == "tick":
        return gr.Checkbox(bool(control.start), **options)
    if control.kind == "choice":
        return gr.Radio(list(control.choices), value=str(control.start), **options)
    low, high, step = control.bounds
    return gr.Slider(low, high, value=float(control.start), step=step, **options)
