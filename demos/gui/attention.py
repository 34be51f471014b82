"""Where a model's attention is, by layer and head, on one denoising step of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.observe import observed
from vidattn.patches.targets import targets_of

from . import memory
from .catalog import Catalog
from .engine import Job, Step
from .generate import progress_of, stoppable
from .order import Order

RADII = (1, 2, 4, 8, 16)
"""Windows reach this many tokens to each side: 3x3 to 33x33."""
QUERIES = 256
"""Queries looked at in each layer, evenly spread: more change the second digit only."""
_MOST_WEIGHTS = 1 << 26  # numbers: beyond this fewer queries are looked at
REACH = 24
"""How far from the query the map of a head reaches."""


@dataclass(frozen=True)
class HeadStats:
    """The attention of one layer's heads, means over queries. H heads.

    Args:
        layer: name.
        grid: (T, H, W) in tokens.
        mass: (radii, H) share of the attention to the picture that lies in the window of each radius.
        area: share of the picture's tokens in that window, which even attention would give; by radius.
        spread: (H,) exp of the entropy over the number of tokens: 1 is even attention, near 0 is one token.
        text: (H,) share of all attention that goes to the text.
        around: (H, 2 REACH + 1, 2 REACH + 1) attention by offset (dy, dx) from the query.
    """

    layer: str
    grid: tuple[int, int, int]
    mass: Tensor
    area: tuple[float, ...]
    spread: Tensor
    text: Tensor
    around: Tensor


@dataclass
class Energy:
    """All layers of one step.

    Args:
        order: whose prompt and seed.
        step: number of the step, from 1.
        layers: in the order they run.
    """

    order: Order
    step: int
    layers: list[HeadStats] = field(default_factory=list)


class _Enough(Exception):
    """The step was seen: nothing more needs to run."""


def measure(job: Job, catalog: Catalog, order: Order, step: int) -> Energy:
    """Run the order's prompt without a patch up to ``step``, and look at that step's first forward.

    Raises:
        Cancelled: the job was stopped.
        ValueError: ``step`` is not among the order's steps, a size that does not fit, or a model whose
            attention cannot be seen.
    """
    if not 1 <= step <= order.steps:
        raise ValueError(f"step={step}: must be 1 to {order.steps}, the steps")
    job.tell(Step("loading the model", 0, 1))
    pipe = catalog.load(order.model).pipe
    call = order.call(catalog.load(order.model))
    memory.check(pipe, order.height, order.width, order.frames or 1)
    made = Energy(order, step)
    call |= progress_of(pipe, job, "denoising up to that step", step)
    generator = torch.Generator("cpu").manual_seed(order.seed)
    with stoppable(pipe, job), _watching(pipe, made, call), suppress(_Enough):
        pipe(**call, generator=generator, output_type="latent")
    if not made.layers:
        raise ValueError(f"{type(pipe).__name__}: its layers compute attention in a way that cannot be seen")
    return made


@contextmanager
def _watching(pipe: Any, made: Energy, call: dict[str, Any]) -> Iterator[None]:
    """Looks at the chosen step's first forward of the denoiser, and ends the run after it."""
    steps, told = [0], call.get("callback_on_step_end")

    def ended(run: Any, index: int, time: Any, values: dict[str, Any]) -> Any:
        steps[0] = index + 1
        return told(run, index, time, values) if told else values

    def look(layer: str, query: Tensor, key: Tensor, layout: TokenLayout, scale: float | None) -> None:
        if steps[0] == made.step - 1:
            made.layers.append(head_stats(layer, query, key, layout, scale))

    def enough(*_: Any) -> None:
        if made.layers:
            raise _Enough

    if told is not None:
        call["callback_on_step_end"] = ended
    models: list[nn.Module] = [target.model for target in targets_of(pipe)]
    hooks = [model.register_forward_hook(enough) for model in models]
    try:
        with observed(pipe, look):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def head_stats(
    layer: str, query: Tensor, key: Tensor, layout: TokenLayout, scale: float | None = None
) -> HeadStats:
    """What one attention call looks at; of a batch the last item, which has the prompt under guidance.

    Args:
        layer: its name.
        query: (B, S, H, D).
        key: (B, S, Hkv, D).
        layout: where the S tokens are.
        scale: of the scores; None is 1 / sqrt(D).
    """
    count, first = layout.grid_tokens, layout.text_before
    queries = min(QUERIES, count, max(16, _MOST_WEIGHTS // (count * query.shape[2])))
    chosen = torch.linspace(0, count - 1, queries).round().long()
    q, k = query[-1, first + chosen.to(query.device)].float(), key[-1].float()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("nhd,shd->hns", q, k) * (scale if scale is not None else q.shape[-1] ** -0.5)
    if (real := layout.key_valid()) is not None:
        scores = scores.masked_fill(~real[-1].to(scores.device), float("-inf"))
    weights = scores.softmax(-1).cpu()
    picture = weights[..., first : first + count]
    total = picture.sum(-1, keepdim=True)
    picture = picture / total.clamp_min(1e-30)
    dy, dx = _offsets(chosen, layout.grid)
    distance = torch.maximum(dy.abs(), dx.abs())
    inside = [(distance <= radius).float() for radius in RADII]
    entropy = -(picture * picture.clamp_min(1e-30).log()).sum(-1)
    return HeadStats(
        layer,
        layout.grid,
        torch.stack([(picture * window).sum(-1).mean(-1) for window in inside]),
        tuple(window.mean().item() for window in inside),
        (entropy.exp() / count).mean(-1),
        1 - total[..., 0].mean(-1),
        _around(picture, dy, dx),
    )


def _offsets(chosen: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """(queries, tokens) rows and columns from each chosen query to each token."""
    number = torch.arange(grid[0] * grid[1] * grid[2])
    y, x = number // grid[2] % grid[1], number % grid[2]
    return y[None] - y[chosen][:, None], x[None] - x[chosen][:, None]


def _around(picture: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    side = 2 * REACH + 1
    near = (dy.abs() <= REACH) & (dx.abs() <= REACH)
    place = ((dy + REACH) * side + dx + REACH)[near]
    made = torch.zeros(picture.shape[0], side * side)
    made.index_add_(1, place, picture[:, near])
    return made.view(-1, side, side) / picture.shape[1]
