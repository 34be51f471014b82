"""What lets attention work on more tokens than it was trained on: positions (NTK) and the softmax scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import GridUnreadable
from vidattn.patches.model_patch import forward_parameters
from vidattn.patches.targets import Target, targets_of

# Position modules that compute their angles from ``theta`` at every forward. The tables of the others are
# made when the model is built: a changed theta would do nothing.
_LIVE_ROPE = (
    "FluxPosEmbed",
    "HunyuanVideoRotaryPosEmbed",
    "HunyuanImageRotaryPosEmbed",
    "CogView4RotaryPosEmbed",
)


def rope_modules(pipe: Any) -> list[Any]:
    """The position modules of a pipeline's denoisers in which NTK scaling acts."""
    models = [target.model for target in targets_of(pipe)]
    return [m for model in models for m in model.modules() if type(m).__name__ in _LIVE_ROPE]


@contextmanager
def ntk_scaled(pipe: Any, factor: float | None) -> Iterator[None]:
    """The base of the rotary positions times ``factor``, for the length of a ``with`` block."""
    changed: list[tuple[Any, Any]] = []
    try:
        for module in rope_modules(pipe) if factor is not None else []:
            changed.append((module, module.theta))
            module.theta = module.theta * factor
        yield
    finally:
        for module, theta in changed:
            module.theta = theta


@dataclass
class Watcher:
    """Reads the token layout of every forward of a pipeline's denoisers.

    Args:
        layout: of the latest forward; None where a model works on several grids, as UNets do.
    """

    layout: TokenLayout | None = None

    def read(self, target: Target, arguments: dict[str, Any]) -> None:
        """Take note of one forward."""
        try:
            layouts = target.family.read(target.model, arguments).layouts
        except GridUnreadable:
            layouts = {}
        known = [layout for layout in layouts.values() if isinstance(layout, TokenLayout)]
        one = len({layout.grid for layout in known}) == 1  # layers may differ in whether they see text
        self.layout = max(known, key=lambda layout: layout.tokens) if one else None


@contextmanager
def watched(pipe: Any) -> Iterator[Watcher]:
    """A :class:`Watcher` on the pipeline's denoisers for the length of a ``with`` block."""
    watcher, handles = Watcher(), []

    def watch(target: Target) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            names = forward_parameters(cast(Any, type(module)))
            watcher.read(target, {**dict(zip(names, args, strict=False)), **kwargs})

        return hook

    try:
        for target in targets_of(pipe):
            handles.append(target.model.register_forward_pre_hook(watch(target), with_kwargs=True))
        yield watcher
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def proportional_scale(pipe: Any, trained: int | None) -> Iterator[None]:
    """Softmax scale times sqrt(log_trained(N)) in every self-attention layer, N the tokens of the forward.

    Args:
        pipe: the pipeline.
        trained: tokens, text included, of the size that the model was trained at; None changes nothing.
    """
    if trained is None:
        yield
        return
    with watched(pipe) as watcher:

        def factor() -> float | None:
            layout = watcher.layout
            return math.sqrt(math.log(layout.tokens) / math.log(trained)) if layout else None

        with scaled_queries(pipe, factor):
            yield


@contextmanager
def scaled_queries(pipe: Any, factor: Callable[[], float | None]) -> Iterator[None]:
    """The softmax scale of every self-attention layer times a factor, for the length of a ``with`` block.

    It goes onto the queries, behind their norm (or their projection where there is none): logits are linear
    in them, so it holds for dense and sparse layers alike.
    """

    def scale(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        value = factor()
        return output if value is None else output * value

    with ExitStack() as stack:
        for target in targets_of(pipe):
            for layer in target.family.layers(target.model):
                for module in query_modules(layer.module):
                    stack.callback(module.register_forward_hook(scale).remove)
        yield


def query_modules(attention: Any) -> list[nn.Module]:
    """The modules behind which an attention layer's queries, of the picture and of the text, come out."""
    found = []
    for norm, projection in (("norm_q", "to_q"), ("norm_added_q", "add_q_proj")):
        module = getattr(attention, norm, None)
        if module is None:
            module = getattr(attention, projection, None)
        if module is not None:
            found.append(module)
    return found
