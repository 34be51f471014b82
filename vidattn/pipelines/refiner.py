"""HunyuanVideo's text refiner on several texts that stand one behind the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def refined_alone(pipe: Any, lengths: Sequence[int], clean: Collection[int] = ()) -> Iterator[None]:
    """The text refiner, which lets all text see all text, runs on each text alone.

    Args:
        pipe: a pipeline with a HunyuanVideo transformer.
        lengths: tokens of each text.
        clean: indices of texts that are refined as at timestep 0.
    """
    refiner = pipe.transformer.context_embedder
    before, forward = refiner.__dict__.get("forward"), refiner.forward

    def each(hidden_states: Tensor, timestep: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        masks = [None] * len(lengths) if attention_mask is None else attention_mask.split(list(lengths), 1)
        texts = hidden_states.split(list(lengths), 1)
        times = [torch.zeros_like(timestep) if i in clean else timestep for i in range(len(lengths))]
        return torch.cat([forward(*given) for given in zip(texts, times, masks, strict=True)], 1)

    refiner.forward = each
    try:
        yield
    finally:
        refiner.__dict__.pop("forward", None)
        if before is not None:
            refiner.forward = before
