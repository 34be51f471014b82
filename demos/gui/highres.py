"""Pictures beyond the trained size, stage by stage; beside them what the model makes at that size at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vidattn.cli import generation
from vidattn.pipelines import Stage, upscale_generate

from . import memory
from .catalog import Catalog, Facts
from .engine import Job, Step
from .generate import progress_of, stoppable
from .order import Order

GUIDANCE = ("frequency", "latent", "none")


@dataclass
class Stages:
    """Stages that have finished.

    Args:
        order: what was asked for; its size is the last stage's.
        guidance: one of ``GUIDANCE``.
        done: (record, picture) of each.
        total: stages in all.
        direct: what was made at full size at once, and its seconds; None if not asked for or not yet there.
        call: arguments of the pipeline's call, but for the size.
        base: size of the first stage; None leaves it to ``upscale_generate``.
    """

    order: Order
    guidance: str
    done: list[tuple[Stage, Image.Image]] = field(default_factory=list)
    total: int = 0
    direct: tuple[Image.Image, float] | None = None
    call: dict[str, Any] = field(default_factory=dict)
    base: tuple[int, int] | None = None


def run_stages(job: Job, catalog: Catalog, order: Order, guidance: str) -> Stages:
    """All stages up to the order's size, then with ``order.compare`` the same prompt at that size at once.

    Tells the job ``Step``s, and the ``Stages`` whenever one has finished.

    Raises:
        Cancelled: the job was stopped; the pipeline is as before.
        ValueError: a size that memory does not hold or the model can't make, or an unknown guidance.
        TypeError: a model that cannot start from a picture.
    """
    if guidance not in GUIDANCE:
        raise ValueError(f"guidance={guidance!r}: choose one of {', '.join(GUIDANCE)}")
    job.tell(Step("loading the model", 0, 1))
    model = catalog.load(order.model)
    call = order.call(model)
    memory.check(model.pipe, order.height, order.width)
    made = Stages(order, guidance, call={k: v for k, v in call.items() if k not in ("height", "width")})
    made.base = first_size(catalog.facts(order.model), order.height, order.width)

    def finished(stage: Stage, index: int, total: int, pictures: list[Any]) -> None:
        made.done.append((stage, pictures[0]))
        made.total = total
        job.tell(made)

    with stoppable(model.pipe, job):
        job.tell(Step("first stage", 0, 1))
        upscale_generate(
            model.pipe,
            size=(order.height, order.width),
            base=made.base,
            guidance=None if guidance == "none" else guidance,
            seed=order.seed,
            patch_options={"min_tokens": 0},
            callback=finished,
            progress=False,
            **made.call,
            **progress_of(model.pipe, job, "stage", 0),
        )
        if order.compare:
            whole = call | progress_of(model.pipe, job, "the same at full size at once", order.steps)
            run = generation.generate(model, whole, order.seed, "at once")
            made.direct = (Image.fromarray((run.frames[0] * 255).round().astype("uint8")), run.seconds)
            job.tell(made)
    return made


def first_size(facts: Facts, height: int, width: int) -> tuple[int, int] | None:
    """The size that the model is at home at, by its folder, with the proportions of the target.

    None if that is unknown, or not smaller than the target.
    """
    if "height" not in facts.defaults or "width" not in facts.defaults:
        return None
    share = (facts.defaults["height"] * facts.defaults["width"] / (height * width)) ** 0.5
    base = tuple(max(1, round(side * share / facts.step)) * facts.step for side in (height, width))
    return (base[0], base[1]) if share < 1 else None


def lines(catalog: Catalog, made: Stages, head: str) -> str:
    """The Python lines that make the last stage again; ``head`` loads the model."""
    guidance = None if made.guidance == "none" else made.guidance
    rest = "".join(f"    {key}={value!r},\n" for key, value in made.call.items() if key != "prompt")
    return f"""{head}
made = upscale_generate(
    pipe,
    {made.call["prompt"]!r},
    size=({made.order.height}, {made.order.width}),
    base={made.base},
    guidance={guidance!r},
    seed={made.order.seed},
    patch_options={{"min_tokens": 0}},
{rest})
made.images[0].save("picture.png")
"""
