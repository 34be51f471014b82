"""The widgets for what each token sees: the pattern with its sliders and its drawing."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vidattn.layout import Grid
from vidattn.patterns import Pattern

from . import controls, pages, preview
from .catalog import Facts
from .order import in_words, read_size
from .parts import QUIET, complaint
from .prediction import sentences, step_seconds
from .subject import Subject, grid_of


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
        self.view = gr.Radio(list(preview.VIEWS), value=preview.VIEWS[0], show_label=False, container=False)
        self.image = gr.Image(
            show_label=False,
            interactive=False,
            format="png",
            buttons=[],
            height=300,
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
            facts = self.subject.facts(model)
            pattern = self.pattern(name, *values)
            drawn = preview.draw(pattern, grid_of(facts, size, int(frames)), query, view)
            cost = self._cost(facts, pattern, size, int(frames))
        except ValueError as error:
            return None, pages.wrong(in_words(error))
        return drawn.image, pages.drawing(drawn, cost)

    def _cost(self, facts: Facts | None, pattern: Pattern, size: str, frames: int) -> list[str]:
        """The predicted times, in words."""
        if facts is None or facts.denoiser is None or pattern.covers(grid_of(facts, size, frames)):
            return []
        where = self.subject.shop.catalog
        times = step_seconds(facts.denoiser, pattern, read_size(size), frames, where.device, where.dtype)
        return sentences(times, where.device)

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
    options: dict[str, Any] = {"label": label, "min_width": 150}
    options["elem_classes"] = f"va-control-{control.pattern}-{control.field}"
    if control.kind == "tick":
        return gr.Checkbox(bool(control.start), **options)
    if control.kind == "choice":
        return gr.Radio(list(control.choices), value=str(control.start), **options)
    low, high, step = control.bounds
    return gr.Slider(low, high, value=float(control.start), step=step, **options)
