"""What a person asked for: checked before anything is loaded."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

from vidattn.cli import arguments as reading
from vidattn.cli import generation
from vidattn.cli.main import build_parser
from vidattn.patterns import Pattern

LONGEST_PROMPT = 2000
MOST_STEPS = 200


@dataclass(frozen=True)
class Order:
    """One picture or clip.

    Args:
        model: a name of the catalog.
        prompt: what to draw.
        height: pixels.
        width: pixels.
        frames: of a clip; None for a picture.
        steps: denoising steps.
        seed: of the noise.
        pattern: what each token sees.
        dense_steps: how many steps at the beginning stay dense.
        compare: also run dense.

    Raises:
        ValueError: a value that cannot be.
    """

    model: str
    prompt: str
    height: int
    width: int
    steps: int
    seed: int
    pattern: Pattern
    dense_steps: int = 0
    frames: int | None = None
    compare: bool = True

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty: write what the picture shall show")
        if len(self.prompt) > LONGEST_PROMPT:
            raise ValueError(f"the prompt has {len(self.prompt)} letters; at most {LONGEST_PROMPT} are taken")
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps={self.steps}: must be 1 to {MOST_STEPS}")
        if not 0 <= self.dense_steps <= self.steps:
            raise ValueError(
                f"dense steps={self.dense_steps}: must be 0 to {self.steps}, all steps there are"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: must be a whole number of at least 0")

    def namespace(self) -> argparse.Namespace:
        """The same as arguments of ``vidattn generate``; options that only it has are at their defaults."""
        given = build_parser().parse_args(["generate", "--prompt", "-"])
        given.prompt, given.model, given.pattern = self.prompt.strip(), self.model, self.pattern.to_text()
        given.size, given.frames = (self.height, self.width), self.frames
        given.steps, given.seed = self.steps, self.seed
        for name, value in self.patch_options().items():
            setattr(given, name, value)
        return given

    def patch_options(self) -> dict[str, Any]:
        """Keyword arguments of ``vidattn.patch``: the pattern is wanted at any size, so min_tokens is 0."""
        return {"dense_steps": self.dense_steps, "min_tokens": 0}

    def call(self, model: generation.Loaded) -> dict[str, Any]:
        """Arguments of the pipeline's call.

        Raises:
            BadArgument: a size that the model can't make, or a pipeline without a prompt.
        """
        return generation.call_arguments(model, self.namespace())


def read_size(text: object) -> tuple[int, int]:
    """Height and width from ``512`` or ``384x512``.

    Raises:
        ValueError: neither.
    """
    try:
        return reading.size(str(text).replace(" ", ""))
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from error


def read_whole(value: object, name: str) -> int:
    """A whole number as a browser's number field gives it.

    Raises:
        ValueError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value):
        raise ValueError(f"{name}={value!r}: must be a whole number")
    return int(value)


def in_words(error: BaseException) -> str:
    """An error as a sentence for the page: options of the command line are not named there."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, reading.BadArgument):
        name, _, rest = text.removeprefix("argument --").partition(": ")
        text = f"{name.replace('-', ' ')}: {rest}"
    return (text[:1].upper() + text[1:])[:600]
