"""Which branches of classifier-free guidance a forward computes.

Some pipelines put both branches into one batch, in an order that the family knows; others call the model
twice in a step, the conditional branch first. The pipeline's ``do_classifier_free_guidance`` says whether a
batch is such a pair. Where a pipeline has no such attribute the halves of the latent tell: they are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidattn.patches.families import Arguments
from vidattn.patches.schedule import CONDITIONAL, UNCONDITIONAL
from vidattn.patches.steps import Moment

_LATENTS = ("hidden_states", "sample", "x")


class BranchReader:
    """Tells the branches of one model's forwards.

    Args:
        order: the branches of a batch, in the family's order; () where they come in calls of their own.
    """

    def __init__(self, order: tuple[str, ...]) -> None:
        self.order = order
        self._step: tuple[int, int] | None = None
        self._calls = 0
        self._run = -1
        self._pairs: dict[int, bool] = {}  # by batch size, in this run

    def read(self, pipe: Any, moment: Moment, arguments: Arguments) -> tuple[str, ...] | str:
        """The branches of a forward, in the order of its batch; or why they are not known."""
        step = (moment.run, moment.position)
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        if _more_branches(pipe):
            return f"{type(pipe).__name__} has more branches than two"
        if not self.order:
            return (UNCONDITIONAL,) if self._calls == 1 else (CONDITIONAL,)
        # with one batch for both, further calls in a step repeat the conditional branch (skipped layers)
        if self._calls or not self._is_pair(pipe, moment, arguments):
            return (CONDITIONAL,)
        return self.order

    def _is_pair(self, pipe: Any, moment: Moment, arguments: Arguments) -> bool:
        latent = next((arguments[n] for n in _LATENTS if arguments.get(n) is not None), None)
        if latent is None or len(latent) % 2:
            return False
        if moment.run != self._run:
            self._run = moment.run
            self._pairs.clear()
        size = len(latent)
        if size not in self._pairs:
            guided = getattr(pipe, "do_classifier_free_guidance", None)
            # Z-Image stops guiding at some step: then the batch is half of what it was
            halved = self._pairs.get(2 * size, False)
            self._pairs[size] = not halved and (_halves_agree(latent) if guided is None else bool(guided))
        return self._pairs[size]


def _more_branches(pipe: Any) -> bool:
    perturbed = getattr(pipe, "do_perturbed_attention_guidance", False)
    return bool(perturbed) or any(
        part in type(pipe).__name__ for part in ("InstructPix2Pix", "LEdits", "Semantic", "OmniGen")
    )


def _halves_agree(latent: Any) -> bool:
    half = len(latent) // 2
    if isinstance(latent, Tensor):
        return not latent.is_meta and torch.equal(latent[:half], latent[half:])
    return all(torch.equal(a, b) for a, b in zip(latent[:half], latent[half:], strict=True))


__all__ = ["BranchReader"]
